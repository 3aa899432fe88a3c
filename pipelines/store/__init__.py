"""Files and objects: where they lie, what may be read, and what may be shown of their names."""
