"""Everything that happens in a training step, without Ray."""
