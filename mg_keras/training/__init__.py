"""Training: configuration, loop, checkpoints, and what is done with a trained run."""
