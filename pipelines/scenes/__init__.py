"""Drawn scenes on a cluster: records, marks, and the training of the built-in model."""
