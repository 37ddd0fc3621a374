"""The process beside a training and the training's end of it: whatever becomes of it, each pass gets its figures."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from live_parts import complete, processes, wait_until

from mld_core.evaluation.live import helper as beside
from mld_core.evaluation.live.helper import LiveHelper, LiveSettings
from mld_core.records.format.layout import RunKey


@pytest.fixture
def made(tmp_path: Path, records):
    """A store, and what seals a small pass of an epoch in it and gives the folder of its rank."""
    factory = records.StoreFactory(tmp_path.resolve())
    run = factory.run()

    def seal(epoch: int, rows: int = 40) -> Path:
        before = set(factory.store.root.rglob("seal.json"))
        factory.add_pass(run, "val", records.make_data(rows, seed=epoch), n_epoch=epoch)
        (new,) = set(factory.store.root.rglob("seal.json")) - before
        return new.parent

    return factory.store.root, run, seal


def started(store: Path, run: RunKey, idle: float = 30.0) -> LiveHelper:
    """The training's end of a process that is started with the first pass."""
    settings = LiveSettings(str(store), run.model_name, run.version_name, idle=idle)
    return LiveHelper(settings)


@pytest.mark.parametrize("seconds", [0.0, 0.6, 1.2])
def test_a_pass_sealed_as_the_process_ends_gets_its_figures(made, seconds: float) -> None:
    store, run, seal = made
    helper = started(store, run, idle=0.5)
    second = seal(1)
    helper.sealed(seal(0))
    complete(store, 1, run, 30.0)
    wait_until(lambda: helper._process.ended() is None, 0.1)
    time.sleep(0.5 + seconds)
    helper.sealed(second)
    helper.finish()
    assert {row["n_epoch"] for row in complete(store, 2, run, 30.0)} == {0, 1}


def test_what_did_not_fit_into_the_pipe_is_told_later(made) -> None:
    store, run, seal = made
    helper = started(store, run)
    helper.sealed(seal(0))
    complete(store, 1, run, 30.0)
    (pid,) = wait_until(lambda: processes(store))
    os.kill(pid, signal.SIGSTOP)
    while helper._process.tell(str(store)):
        pass
    helper.sealed(seal(1))
    os.kill(pid, signal.SIGCONT)
    last = seal(2)

    def told() -> bool:
        helper.sealed(last)
        return {row["n_epoch"] for row in complete(store, 2, run, 30.0)} == {0, 1, 2}

    wait_until(told, 15.0)  # not only once the process has ended by itself
    helper.finish()


def test_passes_that_never_get_figures_are_forgotten(made, monkeypatch: pytest.MonkeyPatch) -> None:
    store, run, _ = made
    helper = started(store, run)
    monkeypatch.setattr(beside, "RANKS_SECONDS", 0.0)
    for number in range(20):
        helper.sealed(store / f"{number}" / "rank-0")
        assert helper.news() == []
    assert len(helper._left) <= 1
    assert not helper._new
    helper.finish()
    wait_until(lambda: not processes(store))
