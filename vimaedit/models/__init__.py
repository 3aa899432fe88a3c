"""Models: their files, their networks, the facts of their family."""
