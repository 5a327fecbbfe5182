"""One training run, below Ray: its plan, its folder, its execution."""
