"""Timing programs: `python -m tests.timing.engine`, `growth`, `gpu`, `images` or `pipeline`, options as key=value; figures in `results/`."""
