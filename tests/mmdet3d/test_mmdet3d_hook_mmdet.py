"""The MMEngine hook on mmdet's own RetinaNet in a real Runner: trained, validated, recorded, evaluated.

Runs in .venv-mmdet3d (`.ci/mmdet3d-env` builds it) and is skipped elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed: run this in .venv-mmdet3d")

import mmdet
import torch
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch.utils.data import Dataset

from ml_debugger.evaluator import Evaluator
from ml_debugger.mmengine import MLDebuggerHook
from mld_core.records.layout import RunKey, Store
from mld_core.records.reader import select

CONFIG = Path(mmdet.__file__).parent / ".mim" / "configs" / "retinanet/retinanet_r18_fpn_1x_coco.py"
CLASSES = ("square", "bar", "spot")
H, W = 96, 128


class Pictures(Dataset[Any]):
    """Six pictures with two objects each, as PackDetInputs hands them over."""

    metainfo = {"classes": CLASSES}  # noqa: RUF012 - as the package has it

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        sample = DetDataSample(
            metainfo={
                "img_id": 100 + index,
                "img_path": f"{index}.jpg",
                "img_shape": (H, W),
                "ori_shape": (H, W),
                "scale_factor": (1.0, 1.0),
            }
        )
        corner = torch.rand(2, 2, generator=generator) * 60
        boxes = torch.cat([corner, corner + 16 + 16 * torch.rand(2, 2, generator=generator)], 1)
        labels = torch.randint(len(CLASSES), (2,), generator=generator)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        picture = torch.randint(0, 255, (3, H, W), generator=generator, dtype=torch.uint8)
        return {"inputs": picture, "data_samples": sample}


class Nothing(BaseMetric):
    """The val loop wants an evaluator."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(len(data_samples))

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        return {"frames": float(sum(results))}


def test_mmdet_in_a_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    register_all_modules()
    model = Config.fromfile(CONFIG).model
    model.backbone.init_cfg = None
    model.bbox_head.num_classes = len(CLASSES)
    model.test_cfg.score_thr = 0.0  # random weights are sure of nothing
    loader = {
        "batch_size": 2,
        "num_workers": 0,
        "dataset": Pictures(),
        "collate_fn": pseudo_collate,
    }
    torch.manual_seed(0)
    runner = Runner(
        model,
        work_dir=str(tmp_path / "work"),
        train_dataloader={**loader, "sampler": {"type": "DefaultSampler", "shuffle": True}},
        val_dataloader={**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        train_cfg={"by_epoch": True, "max_epochs": 2},
        val_cfg={},
        val_evaluator=[Nothing()],
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-3}},
        default_hooks={"logger": None, "checkpoint": None},
        custom_hooks=[MLDebuggerHook(model_name="pictures")],
        default_scope="mmdet",
        experiment_name=tmp_path.name,
    )
    runner.train()

    found = select(Store(), RunKey("pictures", "v1"), n_epoch=None, passes="all")
    assert {(s.key.dataset_type, s.key.n_epoch): s.sealed for s in found} == {
        (split, epoch): True for split in ("train", "val") for epoch in (0, 1)
    }
    for selection in found:
        samples = selection.table("samples").to_pandas()
        assert sorted(samples.input_id) == [str(100 + i) for i in range(6)]
        assert (samples.n_truths == 2).all()
        assert (samples.n_detections > 0).all()
        truths = selection.table("truths").to_pandas()
        for name, rows in truths.groupby("input_id"):
            own = Pictures()[int(name) - 100]["data_samples"].gt_instances
            assert np.allclose(np.stack(rows.box), own.bboxes.numpy())
            assert rows.label.tolist() == own.labels.tolist()
        assert selection.table("vectors").num_rows == samples.n_detections.sum()
    result = Evaluator("pictures", "v1").request_evaluation()
    metrics = result.metrics_summary().set_index("dataset")
    assert metrics.counts.to_dict() == {"train": 6, "val": 6}
