"""Generated bad input: records and files in named classes, what has to become of each, and runs over them."""
