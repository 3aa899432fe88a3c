"""Attention control: which layers (sites), what happens there at a step (control, injection), and how (processor, recorder)."""
