"""The scoring run."""
