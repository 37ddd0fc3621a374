"""2D detection tracers for training."""
