"""Ultralytics' detectors.

Open `yolo` first; `rtdetr` stands on it. `head` reads what heads of any release put out, `truths` the
library's batches: forms of their own, apart from the adapter that asks for both.
"""
