"""What the training commands share: configuration, checkpoints, the clock, averages, pictures."""
