"""What the engine costs, beside other ways to do the same."""
