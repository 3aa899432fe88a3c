"""What a run writes, and by what it is known again."""
