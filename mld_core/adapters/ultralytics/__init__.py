"""Ultralytics' detectors: `yolo` (with its `head` and `truths`) and `rtdetr`. Open `yolo` first."""
