"""From checkpoints and photographs to probabilities, and from those to submissions."""
