"""Where Accelerate, the Trainer and Fabric move batches to a device, their content is hashed as loaders gave it.

There is no device here. `FakeMove` stands in the place of the frameworks' own function: what it gives are clones
that say they lie on one. The rest (loops, loaders, trainers, records) is real.
"""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")
pytest.importorskip("lightning")
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from hf_parts import trainer
from lightning.fabric import Fabric
from loop_parts import Indexed, Net
from torch.utils.data import DataLoader

from ml_debugger import _prepared, accelerate, fabric
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.tracing.batch.fingerprint import HashThread, Moved
from mld_core.tracing.guard import forget_told

pytestmark = [
    pytest.mark.usefixtures("store"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device: this one stands in for nothing"),
]
MOVERS = {
    "accelerate": ("accelerate.data_loader", "send_to_device"),
    "huggingface": ("accelerate.data_loader", "send_to_device"),
    "fabric": ("lightning.fabric.wrappers", "move_data_to_device"),
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The thread that hashes is never late."""
    monkeypatch.setattr(HashThread, "take", lambda self, one: one.make() is None)
    forget_told()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class SaysOnDevice(torch.Tensor):
    """A tensor that says it lies on a device."""

    device = property(lambda self: torch.device("cuda", 0))  # type: ignore[assignment]
    is_cpu = False  # type: ignore[assignment]


class HostNet(Net):
    """It computes on the host, whatever its batches say."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return super().forward(x.as_subclass(torch.Tensor), labels)


class FakeMove:
    """Moves the inputs of a batch to no device: clones that say they lie on one. Labels stay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
        self.moved = 0
        module, name = MOVERS[way]
        monkeypatch.setattr(importlib.import_module(module), name, self)
        monkeypatch.setattr(_prepared, "leaves_host", lambda device: True)

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        self.moved += 1
        return {**batch, "x": batch["x"].clone().as_subclass(SaysOnDevice)}


def with_accelerate(folder: Path, **options: Any) -> None:
    accelerator = Accelerator(cpu=True)
    model = HostNet()
    loaders = DataLoader(Indexed(7), 2, shuffle=True), DataLoader(Indexed(5), 2)
    model, optimizer, train, val = accelerator.prepare(model, torch.optim.SGD(model.parameters()), *loaders)
    model, train, val = accelerate.trace(accelerator, model, train=train, val=val, **options)
    for batch in train:
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
    for batch in val:
        model(**batch)
    train.recording.finish()


def with_fabric(folder: Path, **options: Any) -> None:
    own = Fabric(accelerator="cpu", devices=1)
    net = HostNet()
    model, optimizer = own.setup(net, torch.optim.SGD(net.parameters()))
    train, val = own.setup_dataloaders(DataLoader(Indexed(7), 2, shuffle=True), DataLoader(Indexed(5), 2))
    model, train, val = fabric.trace(own, model, train=train, val=val, **options)
    for batch in train:
        own.backward(model(**batch)["loss"])
        optimizer.step()
    for batch in val:
        model(**batch)
    train.recording.finish()


def with_huggingface(folder: Path, **options: Any) -> None:
    trainer(folder, model=HostNet(), val=5, eval_strategy="epoch", **options).train()


WAYS: dict[str, Callable[..., None]] = {
    "accelerate": with_accelerate,
    "huggingface": with_huggingface,
    "fabric": with_fabric,
}


def recorded(store: Path, version: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(split, id) -> its row, without what differs from run to run; every pass tells the host's kind."""
    found = {}
    for one in select(Store(store), RunKey("HostNet", version), n_epoch=None, passes="all"):
        assert one.hash_kind == "xxh3-128", "the hash was made on the device"
        for row in one.table("samples").to_pylist():
            told = {key: row[key] for key in ("input_hash", "label", "id_source", "unit", "batch_idx")}
            found[one.key.dataset_type, row["input_id"]] = told
    return found


@pytest.mark.parametrize("way", WAYS)
def test_the_loaders_own_batch_is_hashed(
    way: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    WAYS[way](tmp_path / "plain")
    move = FakeMove(monkeypatch, way)
    torch.manual_seed(0)
    WAYS[way](tmp_path / "moved")
    assert move.moved == 4 + 3
    plain, moved = recorded(store, "v1"), recorded(store, "v2")
    assert len(plain) == 12
    assert None not in {row["input_hash"] for row in plain.values()}
    assert moved == plain, "ids, rows and hashes of the run that stayed on the host"


@pytest.mark.parametrize("way", WAYS)
def test_what_moves_the_batches_is_the_frameworks_own_again(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = MOVERS[way]
    move = FakeMove(monkeypatch, way)
    WAYS[way](tmp_path)
    gc.collect()
    own = getattr(importlib.import_module(module), name)
    assert own({"x": torch.ones(1)})["x"].device.type == "cuda"
    assert getattr(importlib.import_module(module), name) is move


def test_micro_batches_that_are_fetched_together_are_hashed_on_the_host_too(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeMove(monkeypatch, "huggingface")
    with_huggingface(tmp_path, gradient_accumulation_steps=4)
    assert len(recorded(store, "v1")) == 12


def moved(n: int, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    here = torch.full((2, size), float(n))
    return here, here.clone().as_subclass(SaysOnDevice)


def test_the_hosts_batch_is_let_go_of_with_its_copy() -> None:
    held = Moved()
    here, there = moved(1)
    held.note([here], [there])
    assert held.at_home({"a": [there], "b": "text"}) == {"a": [here], "b": "text"}
    gone = weakref.ref(here)
    del here
    assert gone() is not None
    del there
    assert gone() is None


def test_of_large_batches_two_are_held() -> None:
    held, large = Moved(), (16 << 20) // 8
    pairs = [moved(i, large) for i in range(3)]
    for here, there in pairs:
        held.note([here], [there])
    assert held.at_home(pairs[0][1]) is None
    assert [held.at_home(there) is here for here, there in pairs[1:]] == [True, True]


def test_a_tensor_that_was_never_moved_is_not_guessed() -> None:
    held = Moved()
    here, there = moved(1)
    held.note([here], [there])
    other = moved(1)[1]
    assert held.at_home([there, other]) is None
    assert held.at_home((here, there)) == (here, here)
