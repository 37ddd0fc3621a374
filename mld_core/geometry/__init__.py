"""Pure functions on boxes: conversions, IoU, NMS, matching, for numpy arrays and torch tensors."""
