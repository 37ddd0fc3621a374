"""3D detection tracers for training."""
