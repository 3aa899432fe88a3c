"""PIE-Bench: its annotations, and the figures published for it."""
