"""Train Tiny Recursive Models with deep supervision: one run, a sweep on Ray, the comparison."""

__version__ = "0.1.0"
