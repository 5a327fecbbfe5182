"""One home a kind of puzzle: what the tokens of a dataset spell."""
