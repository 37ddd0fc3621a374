"""mAP of a recorded run against torchmetrics on what the models themselves return (docs/compatibility.md has the table).

Real models with random weights; the true boxes are some of their own predictions, moved about.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import detector_parts as parts
import numpy as np
import pytest
import torch

from ml_debugger.evaluator import Evaluator
from ml_debugger.training import ObjectDetectionTracer

IMAGES = 6
RECALLS = np.linspace(0, 1, 101).tolist()
"""COCO's own. torchmetrics rounds its to single precision: 0.3 is beyond a recall of 3 in 10 then."""


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


def of_torchvision(name: str) -> Any:
    """A detector of torchvision's."""
    detectors = pytest.importorskip("torchvision_detectors")
    model = detectors.torchvision_detector(name)
    if name == "fcos":
        model.score_thresh = 0.0  # with random weights nothing reaches its 0.2
    return model


def of_transformers(name: str) -> Any:
    """A query detector of transformers."""
    detectors = pytest.importorskip("huggingface_detectors")
    return detectors.huggingface_detector(name)


MODELS: dict[str, Any] = {
    "torchvision Faster R-CNN": lambda: parts.torchvision_model("faster_rcnn"),
    "torchvision RetinaNet": lambda: parts.torchvision_model("retinanet"),
    "torchvision FCOS": partial(of_torchvision, "fcos"),
    "torchvision SSDlite": partial(of_torchvision, "ssdlite"),
    "torchvision Mask R-CNN": partial(of_torchvision, "mask"),
    "Hugging Face YOLOS": parts.yolos,
    "Hugging Face DETR": detr,
    "Hugging Face Table Transformer": partial(of_transformers, "table"),
    "Hugging Face Conditional DETR": partial(of_transformers, "conditional"),
    "Hugging Face Deformable DETR": partial(of_transformers, "deformable"),
    "Hugging Face RT-DETR": partial(of_transformers, "rt_detr"),
    "Hugging Face RT-DETR v2": partial(of_transformers, "rt_detr_v2"),
    "Hugging Face D-FINE": partial(of_transformers, "d_fine"),
}
PROCESSORS = {
    "ConditionalDetrForObjectDetection": "ConditionalDetrImageProcessor",
    "DeformableDetrForObjectDetection": "DeformableDetrImageProcessor",
    **dict.fromkeys(
        ("RTDetrForObjectDetection", "RTDetrV2ForObjectDetection", "DFineForObjectDetection"),
        "RTDetrImageProcessor",
    ),
}


def first_of(model: Any) -> int:
    """The number of torchvision's first class: 0 is the background of models that are trained with one."""
    return int(hasattr(model, "roi_heads") or type(model).__name__ == "SSD")


def answers(model: Any, images: Any) -> list[dict[str, Any]]:
    """What the framework makes of the model's output: xyxy pixels, scores, labels from 0."""
    with torch.no_grad():
        output = model(images)
    if isinstance(output, list):
        return [
            {name: frame[name] for name in ("boxes", "scores")}
            | {"labels": frame["labels"] - first_of(model)}
            for frame in output
        ]
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, PROCESSORS.get(type(model).__name__, "DetrImageProcessor"))()
    sizes = [tuple(image.shape[-2:]) for image in images]
    found: list[dict[str, Any]] = processor.post_process_object_detection(output, 0.0, sizes)
    return found


def moved(rng: Any, frame: dict[str, Any]) -> dict[str, Any]:
    """Some of a model's own boxes, moved about and of a class that is now and then another."""
    sides = (frame["boxes"][:, 2:] - frame["boxes"][:, :2]).min(1).values
    large = sides > 4 if (sides > 4).any() else (sides > 0) & (sides >= sides.median())
    rows = torch.where(large)[0][::3][:4]
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
    size = (64, 96) if any(one in name for one in ("RT-DETR", "D-FINE")) else (parts.HEIGHT, parts.WIDTH)
    images: Any = torch.rand(IMAGES, 3, *size, generator=generator)
    images = list(images) if name.startswith("torchvision") else images
    found = answers(model, images)
    true = [moved(rng, frame) for frame in found]
    metric = detection.MeanAveragePrecision(rec_thresholds=RECALLS)
    metric.update(found, true)
    theirs = {key: float(value) for key, value in metric.compute().items() if value.ndim == 0}

    # torchvision's models cut by themselves, what others return is everything.
    cut = None if name.startswith("torchvision") else 0.0
    tracer = ObjectDetectionTracer(model, "net", "v", score_thresh=cut)
    first = first_of(model) if name.startswith("torchvision") else 0
    given = [{**frame, "labels": frame["labels"] + first} for frame in true]
    with torch.no_grad():
        tracer(images, given, [f"{k}" for k in range(IMAGES)], "val", 0)
    tracer.wait_for_save(0)
    result = Evaluator("net", "v").request_evaluation(options={"progress": False})
    ours = result.metrics_summary(full=True).iloc[0]
    assert 0.01 < theirs["map"] < 0.99
    for own, other in (("auprc", "map"), ("map_50", "map_50"), ("map_75", "map_75"), ("ar_100", "mar_100")):
        # Equal scores (saturated sigmoids of RetinaNet) may stand in another order.
        bound = 0.002 if "RetinaNet" in name else 1e-6
        assert ours[own] == pytest.approx(theirs[other], abs=bound), (other, theirs)
    print(f"| {name} | {theirs['map']:.4f} | {ours['auprc']:.4f} |")
