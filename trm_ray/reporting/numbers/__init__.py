"""What the files of runs say, in numbers."""
