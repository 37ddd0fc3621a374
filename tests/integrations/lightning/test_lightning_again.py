"""One callback, several walks or several models: a second fit, a search inside a fit, a teacher, two heads."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from lightning_parts import IndexModule, assert_ids_are_content, ids_of, loader, passes, quiet_trainer

from ml_debugger.lightning import MLDebuggerCallback
from mld_core.records.format.vectors import to_numpy


def keys(store: Path, version: str = "v1") -> list[tuple[str, int | None, int, int]]:
    """(split, epoch, pass, rows) of every pass of a version."""
    return [
        (p.key.dataset_type, p.key.n_epoch, p.key.pass_no, p.n_rows) for p in passes(store, version=version)
    ]


def test_a_second_fit_from_scratch_is_a_run_of_its_own(store: Path, tmp_path: Path) -> None:
    callback = MLDebuggerCallback()
    quiet_trainer(tmp_path, callback, max_epochs=2).fit(IndexModule(), loader(8), loader(4))
    quiet_trainer(tmp_path, callback, max_epochs=1).fit(IndexModule(), loader(12), loader(4))
    assert keys(store, "v2") == [("train", 0, 0, 12), ("val", 0, 0, 4)]
    assert [k[:3] for k in keys(store)] == [("train", 0, 0), ("train", 1, 0), ("val", 0, 0), ("val", 1, 0)]


def test_a_fit_after_an_interrupted_one(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Interrupted(IndexModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if batch_idx == 1:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    callback = MLDebuggerCallback(model_name="IndexModule")
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        quiet_trainer(tmp_path, callback, max_epochs=1).fit(Interrupted(), loader(8))
    assert "Problems: partial pass" in caplog.text
    caplog.clear()
    quiet_trainer(tmp_path, callback, max_epochs=1).fit(IndexModule(), loader(8))
    assert keys(store, "v2") == [("train", 0, 0, 8)]
    assert "8 rows recorded" in caplog.text
    assert "Problems" not in caplog.text, "those of the run before were told in its own account"


def test_a_test_from_a_checkpoint_does_not_make_the_next_fit_a_resume(store: Path, tmp_path: Path) -> None:
    callback, module = MLDebuggerCallback(), IndexModule()
    trainer = quiet_trainer(
        tmp_path, callback, ModelCheckpoint(tmp_path / "ck"), enable_checkpointing=True, max_epochs=2
    )
    trainer.fit(module, loader(8))
    trainer.test(module, loader(4), ckpt_path="best", verbose=False)
    quiet_trainer(tmp_path, callback, max_epochs=1).fit(module, loader(8))
    assert ("test", 1, 0, 4) in keys(store)
    assert keys(store, "v2") == [("train", 0, 0, 8)]


def test_the_same_trainer_trained_further_goes_on_with_its_run(store: Path, tmp_path: Path) -> None:
    callback, module = MLDebuggerCallback(), IndexModule()
    trainer = quiet_trainer(tmp_path, callback, max_epochs=1)
    trainer.fit(module, loader(8))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader(8))
    assert keys(store) == [("train", 0, 0, 8), ("train", 1, 0, 8)]


def test_a_fit_with_nothing_left_to_train_leaves_no_hooks(store: Path, tmp_path: Path) -> None:
    callback, module = MLDebuggerCallback(), IndexModule()
    trainer = quiet_trainer(tmp_path, callback, max_epochs=1)
    trainer.fit(module, loader(8))
    trainer.fit(module, loader(8))
    assert not callback._recorder.enabled
    assert not any(m._forward_hooks for m in module.modules())
    assert keys(store) == [("train", 0, 0, 8)]


def test_a_learning_rate_search_inside_a_fit_is_no_resume(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Search(LearningRateFinder):
        def on_fit_start(self, *args: Any) -> None:
            """Later."""

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                self.lr_find(trainer, pl_module)

    class Module(IndexModule):
        lr = 1e-4

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), self.lr)

    callback = MLDebuggerCallback(model_name="IndexModule", keep_vectors=None)
    search = Search(num_training_steps=4, early_stop_threshold=None)
    quiet_trainer(tmp_path, callback, search, max_epochs=3).fit(Module(), loader(8, shuffle=True))
    assert keys(store) == [("train", epoch, 0, 8) for epoch in range(3)]
    assert "already written" not in caplog.text
    for selection in passes(store):
        assert_ids_are_content(selection)


def test_loaders_made_anew_every_epoch_are_not_kept_alive(store: Path, tmp_path: Path) -> None:
    datasets: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Module(IndexModule):
        def train_dataloader(self) -> Any:
            made = loader(8, shuffle=True)
            datasets.append(weakref.ref(made.dataset))
            return made

        def on_train_epoch_end(self) -> None:
            gc.collect()
            alive.append(sum(ref() is not None for ref in datasets))

    callback = MLDebuggerCallback(model_name="IndexModule")
    quiet_trainer(tmp_path, callback, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(Module())
    assert alive == [1, 1, 1]
    assert keys(store) == [("train", epoch, 0, 8) for epoch in range(3)]


def test_a_batch_of_several_loaders_does_not_take_the_first_ones_ids(store: Path, tmp_path: Path) -> None:
    class Module(IndexModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch["a"], batch_idx) + super().training_step(batch["b"], batch_idx)

    both = CombinedLoader({"a": loader(8), "b": loader(16)}, "max_size_cycle")
    quiet_trainer(tmp_path, MLDebuggerCallback(model_name="IndexModule"), max_epochs=1).fit(Module(), both)
    (selection,) = passes(store)
    vectors = selection.table("vectors")
    index = to_numpy(vectors.column("features"), vectors.schema.field("features"))[:, 0]
    assert index.tolist() == [*range(8), *range(8)], "the rows are of the loader that is walked twice"
    assert len(set(ids_of(selection))) == len(set(zip(ids_of(selection), index, strict=True))) == 8
    assert set(selection.table("samples").column("id_source").to_pylist()) == {"content_hash"}


@pytest.mark.parametrize("mode", ["max_size_cycle", "sequential"])
def test_evaluating_on_several_loaders_at_once(store: Path, tmp_path: Path, mode: str) -> None:
    class Module(IndexModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            for part in batch.values() if isinstance(batch, dict) else [batch]:
                super().validation_step(part, batch_idx)

    both = CombinedLoader({"a": loader(8), "b": loader(16)}, mode)
    trainer = quiet_trainer(tmp_path, MLDebuggerCallback(model_name="IndexModule"), max_epochs=1)
    trainer.validate(Module(), both)
    sources = {
        one.key.dataset_type: set(one.table("samples")["id_source"].to_pylist()) for one in passes(store)
    }
    if mode == "sequential":
        assert sources == {"val": {"loader_index"}, "val/b": {"loader_index"}}
    else:  # zipped batches: whose index a row has cannot be known
        assert sources == {"val": {"content_hash"}}


class TwoModels(pl.LightningModule):
    """Two heads that always say class 2 and class 0, called in this order or the other."""

    def __init__(self, *, frozen: bool, teacher_last: bool) -> None:
        super().__init__()
        self.teacher, self.student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        for head, says in ((self.teacher, 2), (self.student, 0)):
            torch.nn.init.zeros_(head.weight)
            head.bias.data = 9.0 * torch.eye(3)[says]
        self.teacher.requires_grad_(not frozen)
        self.heads = [self.student, self.teacher] if teacher_last else [self.teacher, self.student]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return sum(torch.nn.functional.cross_entropy(head(batch[0]), batch[1]) for head in self.heads)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for head in self.heads:
            head(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), 1e-6)


@pytest.mark.parametrize("teacher_last", [False, True])
def test_a_frozen_teacher_is_not_what_is_recorded(store: Path, tmp_path: Path, teacher_last: bool) -> None:
    module = TwoModels(frozen=True, teacher_last=teacher_last)
    quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=1).fit(module, loader(8), loader(4))
    for selection in passes(store, "TwoModels"):
        assert set(selection.table("samples")["prediction"].to_pylist()) == {0}


def test_two_heads_of_one_shape_are_told(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = TwoModels(frozen=False, teacher_last=True)
    quiet_trainer(tmp_path, MLDebuggerCallback(), max_epochs=1).fit(module, loader(8))
    assert "Several modules gave an output of shape (4, 3): `teacher`, `student`" in caplog.text
