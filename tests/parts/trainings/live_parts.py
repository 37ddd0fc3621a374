"""A small Lightning training on real digits, evaluated as it happens, and what is waited for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_parts import quiet_trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger.lightning import MLDebuggerCallback
from mld_core.evaluation.live.figures import METRICS, Epochs
from mld_core.records.format.layout import RunKey, Store

RUN = RunKey("digits", "v1")


class Digits(pl.LightningModule):
    """A small network on 8 x 8 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def digits(rows: slice) -> DataLoader[Any]:
    """Some of the 1,797 digits."""
    found = load_digits()
    x = torch.from_numpy(found.images[rows].reshape(-1, 64).astype("float32") / 16)
    return DataLoader(TensorDataset(x, torch.from_numpy(found.target[rows])), batch_size=100)


def train_digits(folder: Path, epochs: int = 2, *callbacks: Any, **options: Any) -> Digits:
    """Train, seed 0, recorded as `RUN`; `kind`: of module, `logger`: the trainer's."""
    torch.manual_seed(0)
    module, logger = options.pop("kind", Digits)(), options.pop("logger", False)
    recorded = MLDebuggerCallback(*RUN.__dict__.values(), **options)
    trainer = quiet_trainer(folder, recorded, *callbacks, max_epochs=epochs, logger=logger)
    trainer.fit(module, digits(slice(1000)), digits(slice(1000, None)))
    return module


def rows_of(store: Path, run: RunKey = RUN) -> list[dict[str, Any]]:
    """The `epochs` table."""
    return Epochs(Store(store), run).rows()


def wait_until(ready: Callable[[], Any], seconds: float = 110.0) -> Any:
    """What `ready` gives once it is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = ready()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {ready}")


def complete(store: Path, passes: int, run: RunKey = RUN, seconds: float = 110.0) -> list[dict[str, Any]]:
    """The table once nothing more will be added to that many passes."""

    def rows() -> list[dict[str, Any]]:
        found = rows_of(store, run)
        return found if len(found) >= passes and all(row["state"] != METRICS for row in found) else []

    return wait_until(rows, seconds)


def processes(store: Path) -> list[int]:
    """Ids of the processes that evaluate trainings of that store."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = b"mld_core.evaluation.live" in (folder / "cmdline").read_bytes()
            if ours and (folder / "cwd").readlink() == store:
                found.append(int(folder.name))
    return found
