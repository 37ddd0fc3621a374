"""One rank of a training of a detector.

usage: detection_script.py lightning|huggingface|ultralytics ROOT
"""

from __future__ import annotations

import sys
from typing import Any

from detector_parts import PixelScenes, pixels, scenes, yolos


def lightning(root: str) -> None:
    from lightning_parts import TorchvisionModule, quiet_trainer

    from ml_debugger.lightning import MLDebuggerCallback

    trainer = quiet_trainer(
        root, MLDebuggerCallback("net", "v", replay_train=True), max_epochs=2, devices=2, strategy="ddp"
    )
    module: Any = TorchvisionModule("faster")
    module.teacher = None
    trainer.fit(module, scenes(9, shuffle=True), scenes(5))


def huggingface(root: str) -> None:
    from transformers import Trainer, TrainingArguments

    from ml_debugger.huggingface import MLDebuggerCallback

    arguments = TrainingArguments(
        output_dir=root,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        num_train_epochs=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        eval_strategy="epoch",
        remove_unused_columns=False,
        eval_do_concat_batches=False,
    )
    Trainer(
        model=yolos(),
        args=arguments,
        train_dataset=PixelScenes(8),
        eval_dataset=PixelScenes(5),
        data_collator=pixels,
        callbacks=[MLDebuggerCallback("net", "v", score_thresh=0.0)],
    ).train()


def ultralytics(root: str) -> None:
    """The package spreads a training over devices of its own kinds only: here its ranks meet on the CPU."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from ultralytics.models.yolo.detect import DetectionTrainer

    from ml_debugger.ultralytics import attach

    class Trainer(DetectionTrainer):
        def _setup_ddp(self) -> None:
            self.device = torch.device("cpu")
            dist.init_process_group("gloo")

        def final_eval(self) -> None:
            """Left out: with several ranks it asks CUDA for its device."""

        def read_results_csv(self) -> dict[str, Any]:  # polars may not be here
            return {}

    class Parallel(nn.parallel.DistributedDataParallel):
        def __init__(self, module: Any, device_ids: Any = None, **options: Any) -> None:
            super().__init__(module, **options)

    nn.parallel.DistributedDataParallel = Parallel
    settings = {
        "epochs": 2,
        "imgsz": 64,
        "batch": 4,
        "workers": 0,
        "amp": False,
        "plots": False,
        "mosaic": 0.0,
    }
    trainer = Trainer(
        overrides={
            "model": "yolov8n.yaml",
            "data": f"{root}/data/data.yaml",
            "device": "cpu",
            "project": root,
            "name": "run",
            "exist_ok": True,
            "verbose": False,
            **settings,
        }
    )
    trainer.world_size = 2
    attach(trainer, "net", "v", score_thresh=0.0, max_detections=30)
    trainer.train()


if __name__ == "__main__":
    scripts = {"lightning": lightning, "huggingface": huggingface, "ultralytics": ultralytics}
    scripts[sys.argv[1]](sys.argv[2])
