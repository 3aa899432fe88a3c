"""Finished data sets pushed to a hub."""
