"""mmdet's own RetinaNet, pictures and a Runner with the hook. usage: mmdet_pictures.py WORK_DIR (under torchrun)"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mmdet
import torch
import torch.distributed as dist
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch.utils.data import Dataset

from ml_debugger.mmengine import MLDebuggerHook

CONFIG = Path(mmdet.__file__).parent / ".mim" / "configs" / "retinanet/retinanet_r18_fpn_1x_coco.py"
CLASSES = ("square", "bar", "spot")
H, W = 96, 128


class Pictures(Dataset[Any]):
    """Pictures with two objects each, as PackDetInputs hands them over."""

    metainfo = {"classes": CLASSES}  # noqa: RUF012 - as the package has it

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

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


def make_runner(work_dir: Path, *, pictures: int, batch_size: int, launcher: str = "none") -> Runner:
    """A Runner of two epochs on random weights."""
    register_all_modules()
    model = Config.fromfile(CONFIG).model
    model.backbone.init_cfg = None
    model.bbox_head.num_classes = len(CLASSES)
    model.test_cfg.score_thr = 0.0  # random weights are sure of nothing
    loader = {
        "batch_size": batch_size,
        "num_workers": 0,
        "dataset": Pictures(pictures),
        "collate_fn": pseudo_collate,
    }
    torch.manual_seed(0)
    wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False, "device_ids": None}
    return Runner(
        model,
        work_dir=str(work_dir),
        train_dataloader={**loader, "sampler": {"type": "DefaultSampler", "shuffle": True}},
        val_dataloader={**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        train_cfg={"by_epoch": True, "max_epochs": 2},
        val_cfg={},
        val_evaluator=[Nothing()],
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-3}},
        default_hooks={"logger": None, "checkpoint": None},
        custom_hooks=[MLDebuggerHook(model_name="pictures")],
        default_scope="mmdet",
        experiment_name=work_dir.name,
        launcher=launcher,
        cfg={"model_wrapper_cfg": wrapper} if launcher != "none" else None,
    )


def main(work_dir: str) -> None:
    """One rank of several."""
    dist.init_process_group("gloo")  # before Runner, which would ask for nccl
    torch.set_num_threads(1)
    make_runner(Path(work_dir), pictures=5, batch_size=1, launcher="pytorch").train()


if __name__ == "__main__":
    main(*sys.argv[1:])
