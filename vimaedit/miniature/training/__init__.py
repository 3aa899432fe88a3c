"""Training of the built-in model `miniature`: its parts, one stage each, and the bundle they make."""
