"""Files of the original TRM code and of others, in and out."""
