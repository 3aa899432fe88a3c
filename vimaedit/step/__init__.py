"""One step of the loop in pure functions."""
