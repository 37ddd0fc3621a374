"""The demo: train a small CNN on real digits with one callback, then ask which samples fail and why.

    python examples/digits_lightning.py

Records go to `MLD_HOME` (default `~/.mld`). See `digits_data.py` for the faults planted in the data.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterable

import lightning as L
import numpy as np
import torch
from digits_data import Digits, make_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ml_debugger.evaluator import Evaluator
from ml_debugger.lightning import MLDebuggerCallback
from ml_debugger.records import load


class DigitsDataset(Dataset[tuple[torch.Tensor, int]]):
    """A plain map-style dataset: image and label, no ids. The recorder finds the dataset's index by itself."""

    def __init__(self, split: Digits) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.split.images[index]), int(self.split.labels[index])


class DigitsModel(L.LightningModule):
    """An ordinary LightningModule: nothing in it knows of the recorder."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self.net(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def train(epochs: int, workers: int) -> tuple[Digits, Digits]:
    """Train with one callback; everything else is as it would be without it."""
    L.seed_everything(0)
    train_split, val_split = make_digits()
    loader = {"batch_size": 64, "num_workers": workers, "persistent_workers": workers > 0}
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[MLDebuggerCallback(model_name="digits")],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(
        DigitsModel(),
        DataLoader(DigitsDataset(train_split), shuffle=True, **loader),
        DataLoader(DigitsDataset(val_split), **loader),
    )
    return train_split, val_split


def check_records(version: str, train_split: Digits, val_split: Digits, epochs: int) -> None:
    """What the recorder promises: every sample once per epoch, under an id that stays the same."""
    for split, size in (("train", len(train_split)), ("val", len(val_split))):
        rows = load("digits", version, dataset_type=split).select(["n_epoch", "input_id"]).to_pandas()
        ids = rows.groupby("n_epoch").input_id.agg(["count", "nunique"])
        assert len(ids) == epochs, f"{split}: {len(ids)} epochs were recorded, {epochs} were trained"
        assert (ids == size).all(axis=None), f"{split}: not every sample once per epoch:\n{ids}"
    print(f"\nevery one of {len(train_split):,} train and {len(val_split):,} val samples once in each of {epochs} epochs")


def share_found(found: Iterable[str], planted: np.ndarray) -> float:
    """Share of the planted samples among the ids found."""
    return len(set(found) & {str(i) for i in planted}) / max(1, len(planted))


def main() -> None:
    """Train, check the records, evaluate, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="loader workers (persistent)")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")

    train_split, val_split = train(args.epochs, args.workers)
    version = newest_version()
    check_records(version, train_split, val_split, args.epochs)

    result = Evaluator("digits", version).request_evaluation()
    result.get_summary()
    issues = result.get_issues(dataset_type="val")
    print("\nThe worst samples of the validation split:")
    print(issues.head(10).dropna(axis=1, how="all").to_string(index=False))


def newest_version() -> str:
    """The run this process has just recorded."""
    from mld_core.records.layout import Store  # noqa: PLC0415  (only to find the version that was claimed)

    versions = [run.version_name for run in Store().runs() if run.model_name == "digits"]
    return max(versions, key=lambda name: int(name[1:]))


if __name__ == "__main__":
    main()
