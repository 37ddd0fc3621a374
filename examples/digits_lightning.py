"""The demo: train a small CNN on real digits with one callback, then ask which samples fail and why.

    python examples/digits_lightning.py

Records go to `MLD_HOME` (default `~/.mld`). See `digits_data.py` for the faults planted in the data.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings

import lightning as L  # noqa: N812  the name its documentation uses
import numpy as np
import torch
from digits_data import Digits, make_digits
from torch import nn
from torch.nn import functional as F  # noqa: N812  the same
from torch.utils.data import DataLoader, Dataset

from ml_debugger.evaluator import Evaluator, Result
from ml_debugger.lightning import MLDebuggerCallback
from ml_debugger.records import load


class DigitsDataset(Dataset[tuple[torch.Tensor, int]]):
    """A plain map-style dataset: image and label, no ids. The recorder finds the index by itself."""

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
        """One step."""
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        """The loss of one batch."""
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self.net(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 1e-3)


def train(epochs: int, workers: int) -> tuple[Digits, Digits]:
    """Train with one callback; everything else is as it would be without it."""
    L.seed_everything(0)
    train_split, val_split = make_digits()
    loader = {"batch_size": 64, "num_workers": workers, "persistent_workers": workers > 0}
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        # No argument is required. An earlier layer beside the penultimate one tells inputs the network cannot
        # read from labels that are ambiguous (docs/evaluation.md).
        callbacks=[
            MLDebuggerCallback(
                model_name="digits",
                target_layers={"conv": "net.5", "hidden": "net.8"},
                image_fn=lambda batch: batch[0],  # thumbnails, so that the pages show what the model saw
            )
        ],
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
    sizes = f"{len(train_split):,} train and {len(val_split):,} val"
    print(f"\nevery one of {sizes} samples once in each of {epochs} epochs")


def check_faults(result: Result, planted: dict[str, np.ndarray]) -> list[str]:
    """Hold the evaluation to finding what was planted in the validation split; returns what it missed."""
    wrong, corrupted = ({str(index) for index in planted[name]} for name in ("wrong_label", "corrupted"))
    suspects = result.get_issues("val", order_by="label_quality", limit=len(wrong))
    found = len(wrong & set(suspects["input_id"])) / len(wrong)
    issues = result.get_issues("val")
    errors = issues[issues["is_error"] & issues["input_id"].isin(corrupted)]
    hot = float(errors["category"].isin(["hotspot", "critical_hotspot"]).mean())
    print("\nThe planted faults:")
    print(
        f"  wrong labels: {found:.1%} of {len(wrong)} are among the first {len(wrong)} suspects (80% asked)"
    )
    print(f"  broken scanner: {hot:.1%} of {len(errors)} errors are in a (critical) hotspot (85% asked)")
    missed = []
    if found < 0.80:
        missed.append(
            f"only {found:.1%} of the planted wrong labels are among the first suspects (80% asked)"
        )
    if not hot >= 0.85:
        missed.append(f"only {hot:.1%} of the broken scanner's errors are in a hotspot (85% asked)")
    return missed


def main() -> None:
    """Train, check the records, evaluate, show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    print("\nThe worst samples of the validation split:")
    columns = [
        "input_id",
        "error_code",
        "confidence",
        "error_proba",
        "category",
        "primary_code",
        "recommended_action",
    ]
    print(result.get_issues("val", limit=10)[columns].to_string(index=False))
    print("\nLabels that are probably wrong:")
    columns = ["input_id", "gt", "suggested_label", "label_quality", "recommended_action"]
    print(
        result.get_issues("val", code="C01", order_by="label_quality", limit=5)[columns].to_string(
            index=False
        )
    )
    print("\nWhere the errors are:")
    columns = ["label", "n", "errors", "rate", "bh_sig", "top_codes"]
    print(result.regions("val")[columns].head(5).to_string(index=False))
    missed = check_faults(result, val_split.planted)
    print("\nin a browser: mld ui")
    if missed:
        sys.exit("the demo failed: " + "; ".join(missed))


def newest_version() -> str:
    """The run this process has just recorded."""
    from mld_core.records.format.layout import Store  # noqa: PLC0415  (only to find the version that was claimed)

    versions = [run.version_name for run in Store().runs() if run.model_name == "digits"]
    return max(versions, key=lambda name: int(name[1:]))


if __name__ == "__main__":
    main()
