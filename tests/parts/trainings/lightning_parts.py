"""A dataset whose sample says its own index, and a module whose features hold it: ids can be proven right."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import torch
from detector_parts import torchvision_model, yolos
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.vectors import to_numpy
from mld_core.records.read.reader import PassSelection, select


class IndexedDataset(Dataset[tuple[torch.Tensor, int]]):
    """Sample i is ([i, noise, noise, noise], i % 3). Indices stay below 2,048: exact in float16."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.sin(torch.arange(1, 4) * (index + 1.0))
        return torch.cat([torch.tensor([float(index)]), noise]), index % 3


class IndexModule(pl.LightningModule):
    """One Linear: its input, the default feature, begins with the sample's index."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.dropout = nn.Dropout(dropout)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.dropout(self.head(x)), y)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.head(batch[0])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.head(batch[0])

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> torch.Tensor:
        return self.head(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-4)


def loader(size: int, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    """A loader over an IndexedDataset."""
    return DataLoader(IndexedDataset(size), batch_size=batch_size, **options)


def quiet_trainer(root: Any, *callbacks: Any, **options: Any) -> pl.Trainer:
    """A CPU trainer that prints and logs nothing; checkpoints only where asked for."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(root),
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def passes(
    store: Any, model: str = "IndexModule", version: str = "v1", split: str | None = None
) -> list[PassSelection]:
    """Every pass of a run, in order."""
    return select(Store(store), RunKey(model, version), dataset_type=split, n_epoch=None, passes="all")


def ids_of(selection: PassSelection) -> list[str]:
    """The ids of a pass's rows."""
    return selection.table("samples").column("input_id").to_pylist()


def assert_ids_are_content(selection: PassSelection) -> None:
    """The feature's first number is the sample's index: it must be the id."""
    samples, vectors = selection.table("samples"), selection.table("vectors")
    feature = feature_matrix(vectors)[:, 0]
    assert samples.column("input_id").to_pylist() == [str(int(v)) for v in feature]


def feature_matrix(vectors: pa.Table) -> np.ndarray:
    """(N, D) of the one default feature."""
    (name,) = [f.name for f in vectors.schema if pa.types.is_fixed_size_binary(f.type) and f.name != "logits"]
    return np.asarray(to_numpy(vectors.column(name), vectors.schema.field(name)), np.float32)


class TorchvisionModule(pl.LightningModule):
    """As users write it: losses in training, detections in validation."""

    def __init__(self, family: str = "retinanet") -> None:
        super().__init__()
        self.net = torchvision_model(family)
        self.teacher = nn.Linear(2, 2)
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, targets = batch
        loss = sum(self.net(list(images), list(targets)).values())
        self.losses.append(float(loss))
        for target in targets:
            target["boxes"].zero_()  # the step may do what it likes with its batch
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        found = self.net(list(batch[0]))
        for frame in found:
            frame["boxes"][:, 2:] -= frame["boxes"][:, :2]  # as COCO's metrics want them, in place

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-4)


class HuggingFaceModule(pl.LightningModule):
    """A query detector in a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.detr = yolos()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.detr(**batch).loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.detr(**batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-4)
