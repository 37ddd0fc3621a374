"""KerasCV's and KerasHub's detectors with random weights."""

from __future__ import annotations

import sys
from typing import Any

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf

CLASSES, SIDE = 4, 64
FORMATS = {"retinanet": "xywh", "yolo": "xyxy", "hub": "xyxy"}
"""The last one is KerasHub's RetinaNet, the others are KerasCV's."""
_made: dict[str, Any] = {}


def _backbone() -> Any:
    return keras_cv.models.YOLOV8Backbone(
        stackwise_channels=[8, 16, 32, 64],
        stackwise_depth=[1, 1, 1, 1],
        include_rescaling=True,
        activation="swish",
        input_shape=(SIDE, SIDE, 3),
    )


def _hub() -> Any:
    hub = pytest.importorskip("keras_hub")
    layers = {
        "stackwise_num_blocks": [1] * 4,
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": "basic_block",
    }
    stem = {"input_conv_filters": [64], "input_conv_kernel_sizes": [7], "stackwise_num_filters": [64] * 4}
    encoder = hub.models.ResNetBackbone(**stem, **layers, image_shape=(SIDE, SIDE, 3))
    return hub.models.RetinaNetBackbone(
        image_encoder=encoder, min_level=3, max_level=5, use_p5=False, image_shape=(SIDE, SIDE, 3)
    )


def detector(name: str) -> Any:
    """One of `FORMATS`, made once; class biases vary, so that scores are no ties."""
    if name == "retinanet" and tf.__version__.startswith("2.16."):
        pytest.skip(f"KerasCV's RetinaNet fails in a Reshape of its own with TensorFlow {tf.__version__}")
    if name not in _made:
        keras.utils.set_random_seed(0)
        body = _hub() if name == "hub" else _backbone()
        settings = {"backbone": body, "num_classes": CLASSES, "bounding_box_format": FORMATS[name]}
        if name == "hub":
            model = sys.modules["keras_hub"].models.RetinaNetObjectDetector(**settings)
        elif name == "yolo":
            model = keras_cv.models.YOLOV8Detector(fpn_depth=1, **settings)
        else:
            model = keras_cv.models.RetinaNet(**settings)
        generator = np.random.default_rng(1)
        for weight in model.trainable_weights:
            if "head/logits_layer" in weight.path:
                # Untrained, on images without its preprocessing, it puts out thousands.
                weight.assign(weight.numpy() / 2000)
            elif any(part in weight.path for part in ("class_3", "prediction_head")):
                noise = generator.normal(0, 0.3 if name == "yolo" else 0.02, weight.shape).astype("float32")
                weight.assign(weight.numpy() + noise)
        _made[name] = model
    return _made[name]


def images_of(count: int = 2) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(2).uniform(0, 255, (count, SIDE, SIDE, 3)).astype("float32")
