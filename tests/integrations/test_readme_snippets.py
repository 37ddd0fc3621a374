"""The usage snippets of the README, executed as they stand there, with the objects they presume."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_parts import Indexed, Net
from torch.utils.data import DataLoader

from mld_core.records.read.reader import load

README = Path(__file__).parents[2] / "README.md"


def snippet(name: str) -> str:
    """The code block under `<!-- snippet: name -->`."""
    found = re.search(rf"<!-- snippet: {name} -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, f"README.md has no snippet called {name!r}"
    return found[1]


def run(name: str, **presumed: Any) -> dict[str, Any]:
    exec(compile(snippet(name), f"README.md: {name}", "exec"), presumed)
    return presumed


def rows(split: str, version: str = "v1", model: str = "Net") -> int:
    return load(model, version, dataset_type=split).num_rows


def test_huggingface(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run(
        "huggingface",
        Trainer=transformers.Trainer,
        TrainingArguments=transformers.TrainingArguments,
        model=Net(),
        train_data=Indexed(7),
        val_data=Indexed(3),
    )
    assert (rows("train"), rows("val")) == (14, 6)


def test_accelerate(store: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    net = Net()
    names = run(
        "accelerate",
        accelerator=accelerate.Accelerator(cpu=True),
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.01),
        train_dl=DataLoader(Indexed(7), 2),
        val_dl=DataLoader(Indexed(3), 2),
    )
    for loader in (names["train_dl"], names["val_dl"]):
        for batch in loader:
            names["model"](**batch)
    names["train_dl"].recording.finish()
    assert (rows("train"), rows("val")) == (7, 3)


def test_torch(store: Path) -> None:
    given = {"train_loader": DataLoader(Indexed(7), 2), "val_loader": DataLoader(Indexed(3), 2)}
    names = run("torch", model=Net(), **given)
    for loader in (names["train_loader"], names["val_loader"]):
        for batch in loader:
            names["model"](**batch)
    names["train_loader"].recording.finish()
    assert (rows("train"), rows("val")) == (7, 3)


def test_mmengine(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    from mmengine.config import Config
    from mmengine_parts import runner

    config = Config.fromstring(snippet("mmengine"), file_format=".py")
    runner(tmp_path, *config.custom_hooks).train()
    assert (rows("train", model="PlainModel"), rows("val", model="PlainModel")) == (40, 20)


def test_plain(store: Path) -> None:
    model = torch.nn.Linear(4, 3)
    batches = [
        (torch.randn(2, 4), torch.tensor([0, 1]), ["a", "b"]),
        (torch.randn(1, 4), torch.tensor([2]), ["c"]),
    ]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    run("plain", torch=torch, model=model, optimizer=optimizer, train_loader=batches)
    assert rows("train", model="MyModel") == 15


def test_lightning_and_evaluator(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    from lightning_parts import IndexModule, loader

    class MyModel(IndexModule):
        pass

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run("lightning", model=MyModel(), train_loader=loader(40), val_loader=loader(20))
    assert rows("val", model="MyModel") == 5 * 20
    names = run("evaluator")
    assert len(names["worst"]) <= 20
    assert not names["by_class"].empty
