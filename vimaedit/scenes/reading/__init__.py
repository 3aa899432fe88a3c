"""Reading pictures of the scene world, and judging edits by what is read."""
