"""The scene world: drawn scenes, their captions, and edits with exact answers."""
