"""Shortest paths through mazes."""
