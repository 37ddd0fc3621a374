"""MLD_AUTO=1: Lightning's own entry points add the callback, once, and never in anybody's way."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger import _auto
from ml_debugger.lightning import AutoMLDebuggerCallback, MLDebuggerCallback
from mld_core.records.format.layout import Store
from mld_core.records.read.reader import load

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]


def make(package: str, folder: Path, *callbacks):
    pl = pytest.importorskip(package)

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.head(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    seen: list[str] = []

    class Last(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            seen.append("setup")

    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, Last()],
    )
    data = DataLoader(TensorDataset(torch.randn(6, 4), torch.arange(6) % 3), batch_size=2)
    return trainer, Model(), data, seen


@pytest.mark.parametrize("package", PACKAGES)
def test_off_unless_asked_for(package: str, store: Path, tmp_path: Path) -> None:
    trainer, *_ = make(package, tmp_path)
    assert not any(isinstance(c, MLDebuggerCallback) for c in trainer.callbacks)


@pytest.mark.parametrize("package", PACKAGES)
def test_adds_one(package: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_AUTO", "1")
    trainer, model, data, seen = make(package, tmp_path)
    trainer.fit(model, data)
    assert sum(isinstance(c, MLDebuggerCallback) for c in trainer.callbacks) == 1
    assert load("Model", "v1", dataset_type="train").num_rows == 6
    assert seen == ["setup"]


@pytest.mark.parametrize("package", PACKAGES)
def test_makes_way_for_the_users_own(
    package: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_AUTO", "1")
    own = MLDebuggerCallback(model_name="own")
    trainer, model, data, seen = make(package, tmp_path, own)
    trainer.fit(model, data)
    assert [c for c in trainer.callbacks if isinstance(c, MLDebuggerCallback)] == [own]
    assert [run.model_name for run in Store().runs()] == ["own"]
    assert load("own", "v1").num_rows == 6
    assert seen == ["setup"], "callbacks behind ours are called as ever"


def test_a_factory_that_cannot_work_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_AUTO", "1")
    monkeypatch.setitem(sys.modules, "ml_debugger.lightning", None)  # importing it now fails
    assert importlib.reload(_auto).lightning_callbacks() == []


def test_the_factory_is_light() -> None:
    code = (
        "import sys; from ml_debugger._auto import lightning_callbacks; assert lightning_callbacks() == []; "
        "print(sorted(m for m in ('torch', 'lightning', 'pyarrow', 'mld_core.tracing') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert AutoMLDebuggerCallback.__name__ != MLDebuggerCallback.__name__  # Lightning keeps states by class
