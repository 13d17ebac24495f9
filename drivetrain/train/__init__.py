"""The one loop, strategies on it, checkpoints and export."""
