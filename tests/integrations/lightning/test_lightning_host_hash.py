"""Where Lightning moves batches to a device, their content is hashed as the loader gave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_parts import IndexModule, loader, passes, quiet_trainer
from torch.nn import functional as F

from ml_debugger.lightning import MLDebuggerCallback
from mld_core.tracing.batch.fingerprint import HashThread


class StandInOnDevice(torch.Tensor):
    """A tensor that says it lies on a device."""

    device = property(lambda self: torch.device("cuda", 0))  # type: ignore[assignment]
    is_cpu = False  # type: ignore[assignment]


class StandInStrategy(SingleDeviceStrategy):
    """A strategy that moves the inputs, and changes them on the way; while it is set up its device is no CPU."""

    moved = 0
    elsewhere = False  # Lightning itself would use the device

    @property
    def root_device(self) -> torch.device:
        return torch.device("cuda", 0) if self.elsewhere else torch.device("cpu")

    def batch_to_device(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
        self.moved += 1
        return [(batch[0] + 1).as_subclass(StandInOnDevice), batch[1]]


class Says(Callback):
    """Has the strategy say, or not, that its device is no CPU."""

    def __init__(self, elsewhere: bool) -> None:
        self.elsewhere = elsewhere

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.strategy.elsewhere = self.elsewhere


class Module(IndexModule):
    """It computes on the host, whatever its batches say."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.head(batch[0].as_subclass(torch.Tensor)), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.head(batch[0].as_subclass(torch.Tensor))


def _hashes(store: Path, version: str) -> dict[tuple[str, str], str]:
    found = {}
    for one in passes(store, "Module", version):
        assert one.hash_kind == "xxh3-128"
        rows = one.table("samples").to_pylist()
        found |= {(one.key.dataset_type, row["input_id"]): row["input_hash"] for row in rows}
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device, so this one stands in for nothing")
def test_the_loaders_own_batch_is_hashed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HashThread, "take", lambda self, one: one.make() is None)  # it is never late

    def fit(strategy: Any) -> Any:
        trainer = quiet_trainer(
            tmp_path,
            Says(strategy != "auto"),
            MLDebuggerCallback(),
            Says(False),
            max_epochs=1,
            strategy=strategy,
        )
        trainer.fit(Module(), loader(12, shuffle=True), loader(6))
        return trainer.strategy

    fit("auto")
    strategy = fit(StandInStrategy(torch.device("cpu")))
    assert strategy.moved == 5
    assert not {"batch_to_device", "process_dataloader"} & set(vars(strategy)), "nothing of ours is left"
    plain, seen = _hashes(store, "v1"), _hashes(store, "v2")
    assert len(plain) == 18
    assert None not in plain.values()
    assert seen == plain
