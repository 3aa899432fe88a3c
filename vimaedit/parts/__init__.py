"""Parts of the engine that few methods use."""
