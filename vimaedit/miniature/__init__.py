"""The small models that come with the package, and the text they know."""
