"""Attention control: which layers (sites), what happens there at a step (control, plan), and how (processor, recorder)."""
