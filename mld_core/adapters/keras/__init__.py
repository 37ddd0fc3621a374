"""Keras detectors, without PyTorch.

`detectors` (KerasCV, TF Object Detection, custom) on `boxes` (its formats).
"""
