"""The editing run."""
