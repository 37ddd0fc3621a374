"""mAP of a recorded run against torchmetrics on what the models themselves return (docs/compatibility.md has the table).

Real models with random weights; the true boxes are some of their own predictions, moved about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import detector_parts as parts
import numpy as np
import pytest
import torch

from ml_debugger.evaluator import Evaluator
from ml_debugger.training import ObjectDetectionTracer

IMAGES = 6


def detr() -> Any:
    """DETR from a small configuration."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    return transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            use_timm_backbone=False,
            backbone_config=backbone,
            use_pretrained_backbone=False,
            backbone=None,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_queries=12,
            num_labels=parts.CLASSES,
        )
    )


MODELS: dict[str, Any] = {
    "torchvision Faster R-CNN": lambda: parts.torchvision_model("faster_rcnn"),
    "torchvision RetinaNet": lambda: parts.torchvision_model("retinanet"),
    "Hugging Face YOLOS": parts.yolos,
    "Hugging Face DETR": detr,
}


def answers(model: Any, images: Any) -> list[dict[str, Any]]:
    """What the framework makes of the model's output: xyxy pixels, scores, labels from 0."""
    with torch.no_grad():
        output = model(images)
    if isinstance(output, list):
        first = 1 if hasattr(model, "roi_heads") else 0
        return [{**frame, "labels": frame["labels"] - first} for frame in output]
    transformers = pytest.importorskip("transformers")
    processor = transformers.DetrImageProcessor()
    sizes = [tuple(image.shape[-2:]) for image in images]
    found: list[dict[str, Any]] = processor.post_process_object_detection(output, 0.0, sizes)
    return found


def moved(rng: Any, frame: dict[str, Any]) -> dict[str, Any]:
    """Some of a model's own boxes, moved about and of a class that is now and then another."""
    sides = (frame["boxes"][:, 2:] - frame["boxes"][:, :2]).min(1).values
    rows = torch.where(sides > 4)[0][::3][:4]
    boxes, labels = frame["boxes"][rows], frame["labels"][rows].clone()
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    shift = torch.tensor(rng.normal(0, 0.06, (len(rows), 4)), dtype=boxes.dtype)
    labels[torch.tensor(rng.random(len(rows)) < 0.2)] = 0
    return {"boxes": boxes + shift * size, "labels": labels}


@pytest.mark.parametrize("name", MODELS)
def test_map_is_that_of_what_the_framework_returns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detection = pytest.importorskip("torchmetrics.detection")
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    model, rng = MODELS[name]().eval(), np.random.default_rng(0)
    generator = torch.Generator().manual_seed(3)
    images: Any = torch.rand(IMAGES, 3, parts.HEIGHT, parts.WIDTH, generator=generator)
    images = list(images) if name.startswith("torchvision") else images
    found = answers(model, images)
    true = [moved(rng, frame) for frame in found]
    metric = detection.MeanAveragePrecision()
    metric.update(found, true)
    theirs = {key: float(value) for key, value in metric.compute().items() if value.ndim == 0}

    tracer = ObjectDetectionTracer(model, "net", "v", score_thresh=0.0)
    first = 1 if hasattr(model, "roi_heads") else 0
    given = [{**frame, "labels": frame["labels"] + first} for frame in true]
    with torch.no_grad():
        tracer(images, given, [f"{k}" for k in range(IMAGES)], "val", 0)
    tracer.wait_for_save(0)
    result = Evaluator("net", "v").request_evaluation(options={"progress": False})
    ours = result.metrics_summary(full=True).iloc[0]
    assert 0.01 < theirs["map"] < 0.99
    for own, other in (("auprc", "map"), ("map_50", "map_50"), ("map_75", "map_75"), ("ar_100", "mar_100")):
        # Equal scores (saturated sigmoids of RetinaNet) may stand in another order.
        assert ours[own] == pytest.approx(theirs[other], abs=0.002), (other, theirs)
    print(f"| {name} | {theirs['map']:.4f} | {ours['auprc']:.4f} |")
