"""Several methods on one benchmark, side by side."""
