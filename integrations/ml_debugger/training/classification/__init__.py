"""Classification tracers for training."""
