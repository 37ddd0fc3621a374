"""Keras and TensorFlow detectors, without PyTorch.

Open `detectors` first (KerasCV, KerasHub, TF Object Detection); `boxes` has Keras' formats in NumPy.
"""
