"""torchvision's detectors: two-stage (`rcnn`) and dense (`dense`), on what both share (`common`)."""
