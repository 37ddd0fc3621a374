"""The process beside a training and the training's end of it: whatever becomes of it, each pass gets its figures."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from folders import TRAININGS
from live_parts import complete, processes, rows_of, wait_until
from zygote import Process

from mld_core.evaluation.live import helper as beside
from mld_core.evaluation.live.helper import LiveHelper, LiveSettings
from mld_core.records.format.layout import RunKey
from mld_core.records.write.reseal import locked


@pytest.fixture
def made(tmp_path: Path, records):
    """A store, and what seals a small pass of an epoch in it and gives the folder of its rank."""
    factory = records.StoreFactory(tmp_path.resolve())
    run = factory.run()

    def seal(epoch: int, rows: int = 40, run: RunKey = run) -> Path:
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


def test_a_pass_sealed_as_the_training_is_killed_gets_its_figures(made) -> None:
    store, run, seal = made
    seal(0)  # before this training, which was not evaluated as it happened
    time.sleep(0.05)
    helper = started(store, run)
    helper.sealed(seal(1))
    complete(store, 1, run, 30.0)
    seal(2)  # and there it dies, before it tells of it
    helper._process.leave()
    assert {row["n_epoch"] for row in complete(store, 2, run, 30.0)} == {1, 2}
    wait_until(lambda: not processes(store))


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


def test_trainings_on_one_store_take_turns_and_have_their_metrics_meanwhile(made, records) -> None:
    store, run, seal = made
    other = records.StoreFactory(store).run("net", "v2")
    helpers = [started(store, one) for one in (run, other)]
    with locked(store):  # as another training's process does that analyses
        helpers[0].sealed(seal(0))
        helpers[1].sealed(seal(0, run=other))
        wait_until(lambda: all(rows_of(store, one) for one in (run, other)), 30.0)
        time.sleep(1.0)
        assert [rows_of(store, one)[0]["state"] for one in (run, other)] == ["metrics", "metrics"]
    states = [complete(store, 1, one, 30.0)[0]["state"] for one in (run, other)]
    assert states == ["analysed", "analysed"]
    for helper in helpers:
        helper.finish()
    wait_until(lambda: not processes(store))


def test_two_ranks_are_evaluated_as_one_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_LIVE", "1")
    store = tmp_path.resolve() / "store"
    training = Process(
        TRAININGS / "lightning_script.py",
        tmp_path,
        2,
        "--devices",
        2,
        "--strategy",
        "ddp_fork",
        "--store",
        store,
    )
    seen: set[int] = set()

    def ended() -> bool:
        seen.update(processes(store))
        return training.poll() is not None

    wait_until(ended)
    assert training.returncode == 0, training.stderr
    rows = complete(store, 4, RunKey("IndexModule", "v1"), 60.0)
    assert {(row["dataset"], row["n_epoch"], row["rows"]) for row in rows} == {
        (split, epoch, size) for split, size in (("train", 20), ("val", 10)) for epoch in (0, 1)
    }
    assert not any(row["metrics"]["missing_ranks"] for row in rows)
    assert len(seen) == 1
    wait_until(lambda: not processes(store))
