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
FORMATS = {"retinanet": "xywh", "yolo": "xyxy", "hub": "xyxy", "dfine": "yxyx"}
"""The last two are KerasHub's RetinaNet and D-FINE, the others are KerasCV's."""
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


def _dfine() -> Any:
    hub = pytest.importorskip("keras_hub")
    stages = {"image_shape": (SIDE, SIDE, 3), "out_features": ["stage3", "stage4"]}
    body = hub.models.HGNetV2Backbone(
        **stages,
        stem_channels=[3, 8, 8],
        stackwise_stage_filters=[
            [8, 8, 16, 1, 3, 3],
            [16, 8, 32, 1, 3, 3],
            [32, 16, 64, 1, 3, 3],
            [64, 16, 64, 1, 3, 3],
        ],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True],
        depths=[1] * 4,
        hidden_sizes=[16, 32, 64, 64],
        embedding_size=8,
        use_learnable_affine_block=True,
        hidden_act="relu",
    )
    return hub.models.DFineBackbone(
        **stages,
        backbone=body,
        decoder_in_channels=[32, 32],
        encoder_hidden_dim=32,
        num_denoising=0,
        num_labels=CLASSES,
        hidden_dim=32,
        learn_initial_query=False,
        num_queries=20,
        anchor_image_size=(SIDE, SIDE),
        feat_strides=[16, 32],
        num_feature_levels=2,
        encoder_in_channels=[64, 64],
        encode_proj_layers=[1],
        num_attention_heads=4,
        encoder_ffn_dim=32,
        num_encoder_layers=1,
        hidden_expansion=0.34,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=32,
        decoder_n_points=[4, 4],
        lqe_hidden_dim=16,
        num_lqe_layers=2,
    )


def detector(name: str) -> Any:
    """One of `FORMATS`, made once; class biases vary, so that scores are no ties."""
    if name == "retinanet" and tf.__version__.startswith("2.16."):
        pytest.skip(f"KerasCV's RetinaNet fails in a Reshape of its own with TensorFlow {tf.__version__}")
    if name not in _made:
        keras.utils.set_random_seed(0)
        body = {"hub": _hub, "dfine": _dfine}.get(name, _backbone)()
        settings = {"backbone": body, "num_classes": CLASSES, "bounding_box_format": FORMATS[name]}
        if name == "hub":
            model = sys.modules["keras_hub"].models.RetinaNetObjectDetector(**settings)
        elif name == "dfine":
            model = sys.modules["keras_hub"].models.DFineObjectDetector(**settings)
        elif name == "yolo":
            model = keras_cv.models.YOLOV8Detector(fpn_depth=1, **settings)
        else:
            model = keras_cv.models.RetinaNet(**settings)
        generator = np.random.default_rng(1)
        for weight in model.trainable_weights:
            if "head/logits_layer" in weight.path:
                # Untrained, on images without its preprocessing, it puts out thousands.
                weight.assign(weight.numpy() / 2000)
            elif any(part in weight.path for part in ("class_3", "prediction_head", "class_embed")):
                noise = generator.normal(0, 0.3 if name == "yolo" else 0.02, weight.shape).astype("float32")
                weight.assign(weight.numpy() + noise)
        _made[name] = model
    return _made[name]


def images_of(count: int = 2) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(2).uniform(0, 255, (count, SIDE, SIDE, 3)).astype("float32")
