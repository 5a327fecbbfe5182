"""A verb a file: what a command or a call of the Python API does, from its arguments to its result."""
