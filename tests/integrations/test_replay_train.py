# ruff: noqa: NPY002 - users' augmentations draw from the global generators
"""replay_train: the training data once more after each epoch, and a training that does not notice."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning_parts import passes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

from ml_debugger.lightning import MLDebuggerCallback
from ml_debugger.records import load
from mld_core.tracing.run.recorder import Recorder
from mld_core.tracing.run.replay import plan

SIZE = 40


class Augmented(Dataset[tuple[Tensor, int]]):
    """Draws from every generator there is, one of its own included."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(5)
        self.transforms = [random.Random(6)]
        self.read: list[int] = []

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.append(index)
        noise = torch.randn(3, 8, 8) * 0.1 + float(np.random.rand()) + random.random()
        return noise + float(self.own.random()) + self.transforms[0].random() + index / SIZE, index % 4


class Net(pl.LightningModule):
    """BatchNorm and dropout; one submodule is frozen in evaluation mode, as users freeze it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
        self.frozen = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        self.losses: list[float] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(self.body(x)).mean((2, 3)))

    def on_train_epoch_start(self) -> None:
        self.frozen.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.modes.append(self.frozen.training)
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def train(tmp_path: Path, workers: int, callbacks: list[Any]) -> tuple[Net, list[Any]]:
    """Three epochs of ten steps; the net and the states of the generators afterwards."""
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    data = Augmented()
    loader = DataLoader(
        data,
        batch_size=4,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(4),
    )
    net = Net()
    trainer = pl.Trainer(
        max_epochs=3,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(net, loader)
    after = [random.random(), float(np.random.rand()), float(torch.rand(())), float(data.own.random())]
    return net, [*after, data.transforms[0].random(), float(torch.rand((), generator=loader.generator))]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_is_the_same_bit_for_bit(tmp_path: Path, store: Path, workers: int) -> None:
    plain, states = train(tmp_path, workers, [])
    callback = MLDebuggerCallback(model_name="net", version_name="v", replay_train=True)
    traced, traced_states = train(tmp_path, workers, [callback])
    assert len(plain.losses) == 30
    assert traced.losses == plain.losses
    assert traced_states == states
    assert traced.modes == [False] * 30
    for (name, one), (_, other) in zip(plain.state_dict().items(), traced.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert [(s.key.dataset_type, s.key.n_epoch, s.sealed, s.n_rows) for s in passes(store, "net", "v")] == [
        ("train", 0, True, SIZE),
        ("train", 1, True, SIZE),
        ("train", 2, True, SIZE),
    ]
    samples = load("net", "v", "samples").to_pandas()
    assert set(samples["mode"]) == {"eval"}
    assert set(samples.id_source) == {"loader_index"}
    one = samples[samples.n_epoch == 1]
    assert one.input_id.tolist() == [str(i) for i in range(SIZE)]
    assert (one.label == one.input_id.astype(int) % 4).all()


class _Trains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def started(store: Path, **options: Any) -> tuple[Recorder, _Trains]:
    model = _Trains()
    made = Recorder(model_name="net", version_name="v", store=str(store), **options)
    made.start(model, made.resolve_names(model), rank=0, world_size=1, framework="")
    return made, model


def rows(n: int) -> list[tuple[Tensor, int]]:
    return [(torch.full((3,), float(i)), i % 2) for i in range(n)]


def test_a_fraction_is_the_same_samples_every_epoch_spread_evenly(store: Path) -> None:
    made, _ = started(store, replay_train=0.25)
    for n_epoch in (0, 1):
        made.replay(DataLoader(rows(20), batch_size=3, shuffle=True), n_epoch)
    made.finish()
    samples = load("net", "v", "samples").to_pandas()
    for n_epoch in (0, 1):
        assert samples[samples.n_epoch == n_epoch].input_id.tolist() == ["0", "5", "10", "14", "19"]


def test_ranks_share_the_data_without_padding(store: Path) -> None:
    made, _ = started(store, replay_train=True)
    loader = DataLoader(rows(7), batch_size=2, sampler=SubsetRandomSampler([6, 1, 2, 3, 5]))
    shares = [plan(made.session, loader, 1.0, (rank, 2))._lists for rank in (0, 1)]
    assert shares == [[[1, 3], [6]], [[2, 5]]]
    made.finish()


def test_what_cannot_be_walked_is_told_and_nothing_else_happens(store: Path) -> None:
    made, model = started(store, replay_train=True)
    model.train()
    made.replay(iter(rows(4)), 0)
    made.replay(DataLoader([("a", "b")] * 4, batch_size=2), 1)  # the model fails on it
    assert made.guard.problems["walking the training data once more"] == 2
    assert model.training
    made.begin_pass("val", 1, mode="eval")
    made.begin_batch()
    x = torch.arange(6.0).reshape(2, 3)
    made.record((x, torch.zeros(2, dtype=torch.long)), model(x), batch_idx=0)
    made.end_pass()
    made.finish()
    assert [(s.key.dataset_type, s.n_rows) for s in passes(store, "net", "v")] == [("val", 2)]


def test_a_data_set_of_whole_batches_is_refused(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, _ = started(store, replay_train=True)
    batches = [(torch.full((4, 3), float(i)), torch.zeros(4, dtype=torch.long)) for i in range(3)]
    made.replay(DataLoader(batches, batch_size=None), 0)
    made.finish()
    assert any("batch_size=None" in record.message for record in caplog.records)
    assert passes(store, "net", "v") == []


def test_off_by_default(store: Path) -> None:
    made, _ = started(store)
    made.replay(DataLoader(rows(4), batch_size=2), 0)
    assert made.finish().rows_put == 0


def test_a_detectors_calls_in_the_walk_are_marked(store: Path) -> None:
    """Adapters must know: the truth is as the training pipeline gives it, though the call was for predictions."""
    from detector_parts import scenes, torchvision_model

    model = torchvision_model("faster").train()
    made = Recorder(model_name="net", version_name="v", store=str(store), replay_train=True)
    made.start(model, made.resolve_names(model), rank=0, world_size=1, framework="")
    marks = []
    take = made.session.capture.take
    made.session.capture.take = lambda: marks.append(take().call.replayed) or take()  # type: ignore[method-assign]
    made.replay(scenes(2), 0)
    assert set(marks) == {True}
    del made.session.capture.take
    made.begin_pass("val", 0, mode="eval")
    made.begin_batch()
    model.eval()([torch.rand(3, 32, 32)])
    assert not made.session.capture.take().call.replayed
    made.finish()
