"""What can be right or wrong with a run: a rule each, a pure function of what it has logged and of its config."""
