"""Pure functions on boxes: conversions, IoU, NMS, matching, for numpy arrays and torch tensors.

By module: `boxes`, `conventions`, `iou`, `nms`, `matching`; `backend` chooses and prepares the compiled
engine.
"""
