"""An MMEngine project: model, dataset and metric, and what `tools/train.py` does. Nothing in it knows of us.

    python examples/digits_mmengine.py examples/digits_mmengine_config.py

On two CPU processes:

    torchrun --nproc-per-node 2 examples/digits_mmengine.py examples/digits_mmengine_config.py
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from digits_data import make_digits
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset


@DATASETS.register_module()
class DigitsDataset(Dataset[dict[str, Any]]):
    """Samples as mmpretrain packs them: `inputs`, and a data sample with the label and the sample's index."""

    def __init__(self, split: str, size: int = 2000) -> None:
        train, val = make_digits(size, size)
        self.split = train if split == "train" else val

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = BaseDataElement(metainfo={"sample_idx": index})
        sample.gt_label = torch.tensor([int(self.split.labels[index])])
        return {"inputs": torch.from_numpy(self.split.images[index]), "data_samples": sample}


@MODELS.register_module()
class DigitsClassifier(BaseModel):
    """A small CNN with mmpretrain's forward modes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(
        self, inputs: list[torch.Tensor], data_samples: list[BaseDataElement], mode: str = "tensor"
    ) -> Any:
        """Losses in mode "loss", samples with `pred_score` in mode "predict", else logits."""
        logits = self.net(torch.stack(list(inputs)))
        if mode == "loss":
            labels = torch.cat([sample.gt_label for sample in data_samples]).to(logits.device)
            return {"loss": nn.functional.cross_entropy(logits, labels)}
        if mode == "predict":
            for sample, score in zip(data_samples, logits.softmax(1), strict=True):
                sample.pred_score = score
            return data_samples
        return logits


@METRICS.register_module()
class DigitsAccuracy(BaseMetric):
    """Share of samples whose largest score is the label's."""

    default_prefix = "digits"

    def process(self, data_batch: Any, data_samples: list[dict[str, Any]]) -> None:  # noqa: ARG002
        """One batch of predictions, as dicts."""
        self.results += [int(s["pred_score"].argmax()) == int(s["gt_label"]) for s in data_samples]

    def compute_metrics(self, results: list[bool]) -> dict[str, float]:
        """Over all ranks."""
        return {"accuracy": sum(results) / len(results)}


def main() -> None:
    """Train from a config; under torchrun, on CPU, with gloo."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} CONFIG")
    config = Config.fromfile(sys.argv[1])
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
        config.launcher = "pytorch"
        config.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "broadcast_buffers": False,
            "device_ids": None,
        }
    Runner.from_cfg(config).train()


if __name__ == "__main__":
    main()
