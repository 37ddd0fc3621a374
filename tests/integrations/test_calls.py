"""What recording asks of the training thread once it is known how batches are read: so many functions of ours a step."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ml_debugger
import mld_core

OURS = tuple(str(Path(package.__file__).parent) for package in (ml_debugger, mld_core))
SETTLED = 30
"""Batches after which nothing is looked for any more."""


class Counted:
    """Has the functions of ours counted that are called within methods of an object, from a batch on."""

    def __init__(self, owner: Any, *events: str) -> None:
        self.calls: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        for event in events:
            setattr(owner, event, self._within(event, getattr(owner, event)))

    def _within(self, event: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.seen[event] += 1
            if self.seen[event] <= SETTLED:
                return own(*args, **kwargs)
            before = sys.getprofile()
            sys.setprofile(self._note)
            try:
                return own(*args, **kwargs)
            finally:
                sys.setprofile(before)

        return counted

    def _note(self, frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            self.calls[
                frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else frame.f_code.co_name
            ] += 1

    def a_step(self) -> float:
        """Calls a step."""
        return sum(self.calls.values()) / (max(self.seen.values()) - SETTLED)


def test_lightning(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from lightning_parts import IndexModule, loader, quiet_trainer

    from ml_debugger.lightning import MLDebuggerCallback

    callback = MLDebuggerCallback()
    counted = Counted(callback, "on_train_batch_start", "on_before_backward", "on_train_batch_end")
    quiet_trainer(tmp_path, callback, max_epochs=1).fit(IndexModule(), loader(320, shuffle=True))
    assert counted.a_step() <= 70, counted.calls.most_common(20)


def test_mmengine(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    from mmengine_parts import IndexedDataset, loader, runner

    from ml_debugger.mmengine import MLDebuggerHook

    hook = MLDebuggerHook()
    counted = Counted(hook, "before_train_iter", "after_train_iter")
    train = loader(IndexedDataset(320), shuffle=True)
    runner(
        tmp_path,
        hook,
        train_dataloader=train,
        train_cfg={"by_epoch": True, "max_epochs": 1},
        val_dataloader=None,
    ).train()
    assert counted.a_step() <= 70, counted.calls.most_common(20)


def test_huggingface(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from hf_parts import trainer

    from ml_debugger.huggingface import MLDebuggerCallback

    callback = MLDebuggerCallback()
    counted = Counted(callback, "on_step_begin", "_forward_begins", "on_pre_optimizer_step", "on_step_end")
    callback._forward.begins = callback._forward_begins
    trainer(tmp_path, callback, train=160).train()
    assert counted.a_step() <= 95, counted.calls.most_common(20)
