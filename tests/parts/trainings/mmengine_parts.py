"""A dataset whose sample says its own index, and models whose features hold it: ids can be proven right.

The classification model follows mmpretrain's `ImageClassifier` (data samples with `gt_label` and `pred_score`), built
from MMEngine's own classes: mmpretrain itself installs beside older packages only (test_mmpretrain.py).
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.vectors import to_numpy
from mld_core.records.read.reader import PassSelection, select

VAL_OFFSET = 1000  # samples of the validation set say another index than those of the training set


class IndexedDataset(Dataset[tuple[torch.Tensor, int]]):
    """Sample i is ([offset + i, noise, noise, noise], i % 3). Values stay below 2,048: exact in float16."""

    def __init__(self, size: int, offset: int = 0) -> None:
        self.size, self.offset = size, offset

    def __len__(self) -> int:
        return self.size

    def vector(self, index: int) -> torch.Tensor:
        noise = torch.sin(torch.arange(1, 4) * (index + 1.0))
        return torch.cat([torch.tensor([float(self.offset + index)]), noise])

    def __getitem__(self, index: int) -> Any:
        return self.vector(index), index % 3


class SampleDataset(IndexedDataset):
    """The same as mmpretrain packs it: `inputs` and a data sample with `gt_label` and metainfo."""

    def __getitem__(self, index: int) -> Any:
        sample = BaseDataElement(metainfo={"sample_idx": self.offset + index, "img_shape": (2, 2)})
        sample.gt_label = torch.tensor([index % 3])
        return {"inputs": self.vector(index), "data_samples": sample}


class PlainModel(BaseModel):
    """`forward(x, y, mode)`: losses in training, the logits otherwise."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        logits = self.head(x)
        return {"loss": F.cross_entropy(self.dropout(logits), y)} if mode == "loss" else logits


class Head(nn.Module):
    """As mmpretrain's `ClsHead`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, feats: tuple[torch.Tensor]) -> torch.Tensor:
        return self.fc(feats[-1])

    def loss(self, feats: tuple[torch.Tensor], samples: list[BaseDataElement]) -> dict[str, torch.Tensor]:
        return {"loss": F.cross_entropy(self(feats), torch.cat([s.gt_label for s in samples]))}

    def predict(self, feats: tuple[torch.Tensor], samples: list[BaseDataElement]) -> list[BaseDataElement]:
        for sample, score in zip(samples, F.softmax(self(feats), dim=1), strict=True):
            sample.pred_score = score
            sample.pred_label = score.argmax(0, keepdim=True)
        return samples


class Classifier(BaseModel):
    """As mmpretrain's `ImageClassifier`."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.head = Head()

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        inputs = torch.stack(list(inputs))
        feats = (self.backbone(inputs),)
        if mode == "loss":
            return self.head.loss(feats, data_samples)
        return self.head.predict(feats, data_samples) if mode == "predict" else self.head(feats)


class Rows(BaseMetric):
    """Counts what it is given."""

    default_prefix = "rows"

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list[int]) -> dict[str, int]:
        return {"n": len(results)}


def loader(dataset: Any, batch_size: int = 4, *, shuffle: bool = False, **options: Any) -> dict[str, Any]:
    """A dataloader config over a dataset."""
    collate = "pseudo_collate" if isinstance(dataset, SampleDataset) else "default_collate"
    return {
        "dataset": dataset,
        "batch_size": batch_size,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": shuffle},
        "collate_fn": {"type": collate},
        **options,
    }


def runner(work_dir: Any, *hooks: Any, model: Any = None, **options: Any) -> Runner:
    """A quiet Runner: 20 training samples, 10 validation, 8 test samples, batches of 4."""
    kind = SampleDataset if isinstance(model, Classifier) else IndexedDataset
    defaults: dict[str, Any] = {
        "model": PlainModel() if model is None else model,
        "train_dataloader": loader(kind(20), shuffle=True),
        "train_cfg": {"by_epoch": True, "max_epochs": 2},
        "val_dataloader": loader(kind(10, VAL_OFFSET)),
        "val_cfg": {},
        "val_evaluator": [Rows()],
        "test_dataloader": loader(kind(8, VAL_OFFSET)),
        "test_cfg": {},
        "test_evaluator": [Rows()],
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 1e-4}},
        "default_hooks": {"logger": None, "checkpoint": None},
        "log_level": "ERROR",
        "experiment_name": f"test_{uuid.uuid4().hex}",  # its singletons are named by the second otherwise
    }
    chosen = {k: v for k, v in {**defaults, **options}.items() if v is not None}
    if "val_dataloader" not in chosen:
        chosen = {k: v for k, v in chosen.items() if not k.startswith("val_")}
    return Runner(work_dir=str(work_dir), custom_hooks=list(hooks), **chosen)


def passes(
    store: Any, model: str = "PlainModel", version: str = "v1", split: str | None = None
) -> list[PassSelection]:
    """Every pass of a run, in order."""
    return select(Store(store), RunKey(model, version), dataset_type=split, n_epoch=None, passes="all")


def summary(store: Any, *args: Any, **kwargs: Any) -> list[tuple[str, int | None, int, int]]:
    """(split, epoch, pass number, rows) of every pass."""
    found = passes(store, *args, **kwargs)
    return [(p.key.dataset_type, p.key.n_epoch, p.key.pass_no, p.n_rows) for p in found]


def ids_of(selection: PassSelection) -> list[str]:
    """The ids of a pass's rows."""
    return selection.table("samples").column("input_id").to_pylist()


def features_of(selection: PassSelection) -> np.ndarray:
    """(N, D) of the default feature: the head's input, which is the sample."""
    vectors = selection.table("vectors")
    return np.asarray(to_numpy(vectors.column("features"), vectors.schema.field("features")), np.float32)


def logits_of(selection: PassSelection) -> np.ndarray:
    """(N, 3) logits."""
    vectors = selection.table("vectors")
    return np.asarray(to_numpy(vectors.column("logits"), vectors.schema.field("logits")))


def assert_ids_are_content(selection: PassSelection, offset: int = 0) -> None:
    """The feature's first number is the sample's index (plus the split's offset): it must be the id."""
    found = [str(int(v) - offset) for v in features_of(selection)[:, 0]]
    assert ids_of(selection) == found
