"""Query detectors of transformers with random weights, small enough for a test, whose scores are no ties."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

transformers = pytest.importorskip("transformers")

CLASSES, QUERIES = 6, 20
HEIGHT, WIDTH = 64, 96
SMALL = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "d_model": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": QUERIES}


def _resnet() -> Any:
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def _detr(name: str, **more: Any) -> Any:
    config = getattr(transformers, f"{name}Config")
    made = config(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=_resnet(),
        num_labels=CLASSES,
        **SMALL,
        **HEADS,
        **more,
    )
    return getattr(transformers, f"{name}ForObjectDetection")(made)


def _rt_detr(name: str, **more: Any) -> Any:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = getattr(transformers, f"{name}Config")
    made = config(
        backbone_config=backbone,
        use_pretrained_backbone=False,
        num_labels=CLASSES,
        num_queries=QUERIES,
        num_denoising=10,
        encoder_in_channels=[8, 16, 16],
        feat_strides=[8, 16, 32],
        encoder_hidden_dim=32,
        encoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_in_channels=[32, 32, 32],
        d_model=32,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=4,
        **more,
    )
    return getattr(transformers, f"{name}ForObjectDetection")(made)


def _yolos() -> Any:
    return transformers.YolosForObjectDetection(
        transformers.YolosConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            image_size=[HEIGHT, WIDTH],
            num_detection_tokens=QUERIES,
            num_labels=CLASSES,
        )
    )


BUILD = {
    "detr": partial(_detr, "Detr"),
    "table": partial(_detr, "TableTransformer"),
    "conditional": partial(_detr, "ConditionalDetr"),
    "deformable": partial(_detr, "DeformableDetr"),
    "deformable two-stage": partial(
        _detr, "DeformableDetr", two_stage=True, with_box_refine=True, two_stage_num_proposals=QUERIES
    ),
    "rt_detr": partial(_rt_detr, "RTDetr"),
    "rt_detr_v2": partial(_rt_detr, "RTDetrV2"),
    "d_fine": partial(_rt_detr, "DFine"),
    "yolos": _yolos,
}
SOFTMAX = ("detr", "table", "yolos")
DENOISING = ("rt_detr", "rt_detr_v2", "d_fine")
PROCESSOR = {
    "conditional": "ConditionalDetrImageProcessor",
    "deformable": "DeformableDetrImageProcessor",
    "deformable two-stage": "DeformableDetrImageProcessor",
    "yolos": "YolosImageProcessor",
    **dict.fromkeys(DENOISING, "RTDetrImageProcessor"),
}


def huggingface_detector(name: str) -> Any:
    """One of `BUILD`, in evaluation mode; its class layers are made to vary."""
    torch.manual_seed(0)
    model = BUILD[name]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "class_embed" in key or "class_labels_classifier" in key or "query" in key:
                value.add_(torch.randn(value.shape, generator=generator))
    return model.eval()


def processor_of(name: str) -> Any:
    """The image processor that makes detections of the model's output."""
    return getattr(transformers, PROCESSOR.get(name, "DetrImageProcessor"))()
