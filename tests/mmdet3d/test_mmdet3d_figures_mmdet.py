"""mmdet's own CocoMetric in its own Runner and the recorded run give one mAP (docs/compatibility.md has the table).

Real models with random weights; the true boxes are some of their own predictions, moved about. Runs in
.venv-mmdet3d (`.ci/mmdet3d-env` builds it) and is skipped elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed: run this in .venv-mmdet3d")

import torch
from mmdet.evaluation.metrics import coco_metric
from mmdet.structures import DetDataSample
from mmdet_detectors import CLASSES, FILES, mmdet_detector
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch.utils.data import Dataset

from ml_debugger.evaluator import Evaluator
from ml_debugger.mmengine import MLDebuggerHook

IMAGES = 6


class Pictures(Dataset[Any]):
    """Pictures at half and at double size, true boxes in the original's pixels as the stock pipelines have them."""

    metainfo = {"classes": tuple("abcde"[:CLASSES])}  # noqa: RUF012 - as the package has it

    def __init__(self) -> None:
        self.true: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Any:
        (height, width), scale = (((96, 128), 2.0), ((96, 80), 0.5))[index % 2]
        original = (round(height / scale), round(width / scale))
        boxes, labels = (
            self.true[index] if self.true else (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
        )
        known = [
            {"bbox": box, "bbox_label": label, "ignore_flag": 0}
            for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)
        ]
        meta = {"img_id": index, "img_path": f"{index}.jpg", "img_shape": (height, width), "instances": known}
        meta |= {"ori_shape": original, "scale_factor": (scale, scale), "border": [0, 0, 0, 0]}
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        generator = torch.Generator().manual_seed(index)
        picture = torch.randint(0, 255, (3, height, width), generator=generator, dtype=torch.uint8)
        return {"inputs": picture, "data_samples": sample}


def moved(found: Any, shape: tuple[int, int], rng: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Some of a model's own boxes, moved about within the image, of a class that is now and then another."""
    limits = torch.tensor([shape[1], shape[0]] * 2)
    boxes = torch.minimum(found.bboxes.clamp(min=0), limits)
    sides = (boxes[:, 2:] - boxes[:, :2]).min(1).values
    rows = torch.where(sides >= sides.median().clamp(min=1))[0][::3][:4]
    boxes, labels = boxes[rows], found.labels[rows].clone()
    shift = torch.tensor(rng.normal(0, 0.06, (len(rows), 4)), dtype=boxes.dtype)
    boxes = boxes + shift * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    labels[torch.tensor(rng.random(len(rows)) < 0.2)] = 0
    return torch.minimum(boxes.clamp(min=0), limits), labels


# One of each kind of head; `make test-all` has the others.
KINDS = {"faster", "fcos", "detr", "yolox"}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in KINDS else pytest.mark.heavy) for one in FILES]
)
def test_map_is_that_of_mmdets_own_metric(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    made: list[Any] = []

    class Kept(coco_metric.COCOeval):
        """The metric rounds to three digits what this has in full."""

        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            made.append(self)

    monkeypatch.setattr(coco_metric, "COCOeval", Kept)
    model, data, rng = mmdet_detector(name), Pictures(), np.random.default_rng(0)
    for part in model.modules():
        # What is below this is nothing to the model; with random weights nothing is above.
        if (cfg := getattr(part, "test_cfg", None)) is not None and "score_thr" in cfg:
            cfg.score_thr = 0.01
    if name == "centernet":  # with random weights its boxes have next to no extent
        torch.nn.init.constant_(model.bbox_head.wh_head[-1].bias, 6.0)
    true = []
    with torch.no_grad():
        for index in range(IMAGES):
            (answer,) = model.test_step(pseudo_collate([data[index]]))
            true.append(moved(answer.pred_instances, answer.ori_shape, rng))
    data.true = true
    loader = {"batch_size": 2, "num_workers": 0, "dataset": data, "collate_fn": pseudo_collate}
    runner = Runner(
        model,
        work_dir=str(tmp_path / "work"),
        val_dataloader={**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        val_cfg={},
        val_evaluator={"type": "CocoMetric", "metric": "bbox"},
        default_hooks={"logger": None, "checkpoint": None},
        custom_hooks=[MLDebuggerHook(model_name="net", version_name="v")],
        default_scope="mmdet",
        experiment_name=f"figures-{name}",
    )
    runner.val()
    theirs = dict(zip(("auprc", "map_50", "map_75"), made[-1].stats, strict=False))
    result = Evaluator("net", "v").request_evaluation(n_epoch=None, options={"progress": False})
    ours = result.metrics_summary(full=True).iloc[0]
    assert 0.01 < theirs["auprc"] < 0.99
    print(f"| MMDetection {name} | {theirs['auprc']:.4f} | {ours['auprc']:.4f} |")
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-4), (key, theirs)
