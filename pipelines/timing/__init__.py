"""What the engine and the pipeline cost, measured."""
