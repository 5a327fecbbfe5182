"""Sudoku of 4×4, 6×6 and 9×9 cells."""
