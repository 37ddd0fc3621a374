"""torchvision's detectors.

Open `common` first (the chain of filters run again with indices), then `rcnn` (two stages) or `dense` (one).
"""
