"""Evaluations that an exception of the user's ends, in a program that goes on."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
import torch
from hf_parts import rows, sealed, trainer
from loop_parts import Indexed, Net

from ml_debugger.huggingface import MLDebuggerCallback
from mld_core.tracing.guard import forget_told

pytestmark = pytest.mark.usefixtures("store")


class Raises(Net):
    """Its forward raises at one call in evaluation mode."""

    calls, at = 0, 1

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if not self.training:
            self.calls += 1
            if self.calls == self.at:
                raise RuntimeError("the user's own")
        return super().forward(x, labels)


def assert_whole(table: Any) -> None:
    """The pass is the second evaluation, and nothing of the first one."""
    assert sorted(table.input_id) == [str(i) for i in range(5)]
    assert (table.label == table.input_id.astype(int) % 3).all(), "an id belongs to another sample"
    assert (table.feature0 == table.input_id.astype(float)).all()


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_that_was_left_is_not_gone_on_with(at: int, workers: int, tmp_path: Path) -> None:
    forget_told()
    model = Raises()
    model.at = at
    kept = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True} if workers else {}
    ours = trainer(tmp_path, model=model, val=5, **kept)
    with pytest.raises(RuntimeError, match="the user's own"):
        ours.evaluate()
    ours.evaluate()
    passes = sealed(model="Raises")
    done = [key for key, whole in passes.items() if whole]
    assert [key[0] for key in done] == ["val"]
    table = rows(model="Raises")
    assert_whole(table[table.pass_no == done[0][2]])


def test_an_evaluation_of_another_set_after_one_that_was_left(tmp_path: Path) -> None:
    forget_told()
    model = Raises()
    model.at = 3
    ours = trainer(tmp_path, model=model, val=9)
    ours.train()
    with pytest.raises(RuntimeError, match="the user's own"):
        ours.evaluate()
    ours.predict(Indexed(5))
    table = rows(model="Raises")
    assert_whole(table[table.dataset_type == "predict"])


def test_a_loader_that_cannot_be_referred_to_weakly_is_recorded(tmp_path: Path) -> None:
    """A list of batches is a loader to the Trainer."""
    forget_told()
    ours = trainer(tmp_path, model=Net(), val=5)
    batches = list(ours.get_eval_dataloader())
    ours.get_eval_dataloader = lambda *_: batches
    for _ in range(2):
        ours.evaluate()
    done = [key for key, whole in sealed(model="Net").items() if whole]
    assert [key[0] for key in done] == ["val", "val"]
    table = rows(model="Net")
    assert len(table) == 10
    assert table.label.notna().all()


def test_a_callback_that_has_recorded_nothing_can_be_pickled() -> None:
    """A search of hyperparameters sends its arguments to processes."""
    assert isinstance(pickle.loads(pickle.dumps(MLDebuggerCallback())), MLDebuggerCallback)
