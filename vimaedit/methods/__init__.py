"""One small file per editor: its recipe over the engine's parts."""
