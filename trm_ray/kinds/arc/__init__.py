"""ARC-AGI: grids of colours."""
