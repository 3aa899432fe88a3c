"""An independent, slow reference of the edit: every attention map materialised, one edit at a time, one formula a line.

It shares no code with the package it guards. Rows of a UNet batch: (uncond source, uncond target, cond source, cond target).
"""
