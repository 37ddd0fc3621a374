"""Padded batches of Hugging Face: predictions and true boxes stand in one frame, and lead back to the original."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import pytest
import torch

transformers = pytest.importorskip("transformers")

from ml_debugger.records import load  # noqa: E402
from mld_core.records.format.layout import RunKey, Store  # noqa: E402

BOX = [20.0, 30.0, 60.0, 40.0]  # x, y, w, h in pixels of the original image


class Perfect(transformers.DetrForObjectDetection):
    """Says what it was told, in parts of the padded images ("padded") or of what is no padding ("valid")."""

    def forward(self, pixel_values: Any, pixel_mask: Any = None, labels: Any = None, **_: Any) -> Any:
        height, width = pixel_values.shape[-2:]
        logits = torch.full((len(pixel_values), 4, 4), -9.0)
        logits[..., 3] = 9.0
        boxes = torch.full((len(pixel_values), 4, 4), 0.001)
        for i, target in enumerate(self.told):
            logits[i, 0, target["class_labels"][0]], logits[i, 0, 3] = 9.0, -9.0
            part = target["boxes"][0]
            if self.frame == "valid":
                rows, columns = pixel_mask[i][:, 0].sum(), pixel_mask[i][0].sum()
                part = part * torch.tensor([width / columns, height / rows] * 2)
            boxes[i, 0] = part
        return transformers.models.detr.modeling_detr.DetrObjectDetectionOutput(
            logits=logits, pred_boxes=boxes
        )


@pytest.fixture
def batch() -> Any:
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    images = [np.full((100, 200, 3), 120, np.uint8), np.full((200, 100, 3), 60, np.uint8)]
    one = {"bbox": BOX, "category_id": 2, "area": 2400.0, "iscrowd": 0}
    notes = [{"image_id": i, "annotations": [{**one, "image_id": i}]} for i in range(2)]
    made = processor(images=images, annotations=notes, return_tensors="pt")
    assert made["pixel_mask"].min() == 0
    return made


@pytest.fixture
def model(batch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_labels=3,
        num_queries=4,
        encoder_layers=1,
        decoder_layers=1,
        d_model=16,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    made = Perfect(config).eval()
    made.told, made.frame = batch["labels"], "padded"
    return made


def table(family: str, version: str) -> pd.DataFrame:
    return load("net", version, family).to_pandas()


def to_original(boxes: Any, samples: pd.DataFrame) -> Any:
    affine = np.stack(list(samples.affine))
    return np.stack(list(boxes)) * affine[:, [0, 4, 0, 4]]


@pytest.mark.parametrize("frame", ["padded", "valid"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_perfect_model_is_perfect(
    model: Any, batch: Any, frame: str, inside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With the labels beside the call, or inside it too (then a model is trained in their frame)."""
    from ml_debugger.training import ObjectDetectionTracer

    model.frame = "padded" if inside else frame
    tracer = ObjectDetectionTracer(model, "net", "v")
    inputs = {key: batch[key] for key in ("pixel_values", "pixel_mask", *(["labels"] if inside else []))}
    for epoch in range(2):
        tracer(inputs, batch["labels"], ["a", "b"], "val", epoch)
        tracer.wait_for_save(epoch)
    for epoch in range(2):
        samples, found, true = (
            load("net", "v", family, n_epoch=epoch).to_pandas()
            for family in ("samples", "detections", "truths")
        )
        np.testing.assert_allclose(np.stack(list(found.box)), np.stack(list(true.box)), atol=1e-3)
        expected = np.array([[20, 30, 80, 70]] * 2)
        np.testing.assert_allclose(to_original(true.box, samples), expected, atol=0.5)
        np.testing.assert_allclose(to_original(found.box, samples), expected, atol=0.5)
    assert Store().run_info(RunKey("net", "v"))["box_frame"] == model.frame
    assert f"box_frame='{model.frame}'" in caplog.text


def test_without_true_boxes_the_images_are_meant_without_their_padding(model: Any, batch: Any) -> None:
    from ml_debugger.training import ObjectDetectionTracer

    model.frame = "valid"
    tracer = ObjectDetectionTracer(model, "net", "v")
    inputs = {key: batch[key] for key in ("pixel_values", "pixel_mask")}
    tracer(inputs, None, ["a", "b"], "val", 0)
    tracer.wait_for_save(0)
    found = np.stack(list(table("detections", "v").box))
    height, width = batch["pixel_values"].shape[-2:]
    true = np.stack([t["boxes"][0].numpy() for t in batch["labels"]]) * [width, height, width, height]
    expected = np.concatenate([true[:, :2] - true[:, 2:] / 2, true[:, :2] + true[:, 2:] / 2], 1)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert "box_frame" not in Store().run_info(RunKey("net", "v"))


def test_areas_of_segments_come_in_pixels_of_the_original(model: Any, batch: Any) -> None:
    """COCO's sizes go by the area of the segment, not by that of the box."""
    from ml_debugger.training import ObjectDetectionTracer

    tracer = ObjectDetectionTracer(model, "net", "v")
    tracer({key: batch[key] for key in ("pixel_values", "pixel_mask")}, batch["labels"], ["a", "b"], "val", 0)
    tracer.wait_for_save(0)
    true = table("truths", "v")
    np.testing.assert_allclose(true.area, [2400.0, 2400.0], rtol=0.02)
    assert not true.crowd.any()
