"""A real training is evaluated as it happens: the figures of an evaluation, and the training knows nothing of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from live_parts import RUN, complete, processes, rows_of, train_digits, wait_until
from zygote import Process

from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.live import helper as beside

KILLED = """
import os, signal, sys
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from live_parts import train_digits, wait_until

class Killed(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 3:
            wait_until(lambda: len(list(Path(sys.argv[1]).rglob("seal.json"))) == 4)
            os.kill(os.getpid(), signal.SIGKILL)

train_digits(Path(sys.argv[1]), 5, Killed(), store=sys.argv[1])
"""
CRAMPED = """
import sys
from pathlib import Path
from live_parts import train_digits
from mld_core.evaluation.live.helper import LiveSettings

LiveSettings.__init__.__defaults__ = (2**60, 30.0)  # more than any machine has
train_digits(Path(sys.argv[1]), 3, store=sys.argv[1])
"""
LIMITED = """
import resource
from mld_core.evaluation.live.memory import refusal

resource.setrlimit(resource.RLIMIT_DATA, (1_000_000_000, resource.RLIM_INFINITY))
print(refusal(2**30))
"""


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLD_LIVE", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """A store with a training that was evaluated as it happened, its table, and the trained module."""
    folder = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLD_LIVE", raising=False)
        module = train_digits(folder, store=folder / "store")
        rows = complete(folder / "store", 4)
    return folder / "store", rows, module


def test_its_metrics_are_those_of_an_evaluation(trained) -> None:
    store, rows, _ = trained
    assert {(row["dataset"], row["n_epoch"]) for row in rows} == {
        (split, epoch) for split in ("train", "val") for epoch in (0, 1)
    }
    evaluator = Evaluator(RUN.model_name, RUN.version_name, store=store)
    table = evaluator.request_evaluation(n_epoch=None, options={"repeats": 1}).metrics_summary(full=True)
    expected = {(row["dataset"], row["n_epoch"]): row for row in table.to_dict("records")}
    for row in rows:
        whole, full = expected[row["dataset"], row["n_epoch"]], row["state"] == "analysed"
        known = {name: value for name, value in row["metrics"].items() if value is not None}
        loss = known.pop("net_entropy_loss"), known.pop("net_entropy_loss_mean")
        # Until the logits are read the loss is the recorder's own, a float32.
        exact = 0 if full else 1e-6
        assert loss[0] == pytest.approx(whole["net_entropy_loss"], rel=exact, abs=0)
        known.pop("missing_ranks")
        assert len(known) > (13 if full else 9)
        assert {name: whole[name] for name in known} == known


def test_the_latest_pass_of_each_split_is_analysed(trained) -> None:
    _, rows, _ = trained
    states = {(row["dataset"], row["n_epoch"]): row for row in rows}
    for split, size in (("train", 1000), ("val", 797)):
        last = states[split, 1]
        assert last["state"] == "analysed", last["notes"]
        assert last["analysis"]["of"] == last["rows"] == size
        shares = [
            last["analysis"]["categories"][f"{name}_coverage_ratio"] for name in ("stable", "operational")
        ]
        assert 0 < sum(shares) <= 1
        assert last["analysis"]["metrics"]["error_proba_auroc"] > 0.5
        assert {"code", "title", "severity", "counts", "action"} == set(last["analysis"]["findings"][0])
        assert 0 < last["cpu_seconds"] < 10
    # Of those that waited and were overtaken, the metrics stay.
    assert {row["state"] for row in rows} <= {"analysed", "overtaken"}
    assert all(row["analysis"] is None for row in rows if row["state"] == "overtaken")


def test_no_figure_of_the_training_changes(trained, tmp_path: Path) -> None:
    alone = train_digits(tmp_path, store=tmp_path / "store", live=False)
    assert not rows_of(tmp_path / "store")
    for one, other in zip(trained[2].parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_metrics_are_there_soon_after_the_seal(trained) -> None:
    _, rows, _ = trained
    seconds = [
        (
            datetime.fromisoformat(row["measured_at"]) - datetime.fromisoformat(row["sealed_at"])
        ).total_seconds()
        for row in rows
    ]
    # Within 2 s where a core is free; the processes of other tests may have them all.
    assert max(seconds) < 20


def test_the_process_ends_with_the_training(trained) -> None:
    wait_until(lambda: not processes(trained[0]), 20)


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="no niceness here")
def test_it_takes_what_the_training_leaves_of_the_processor(tmp_path: Path, monkeypatch, records) -> None:
    monkeypatch.delenv("MLD_LIVE_NICE")  # the tests' own
    run = records.StoreFactory(tmp_path).run()
    helper = beside.LiveHelper(beside.LiveSettings(str(tmp_path), run.model_name, run.version_name))
    helper.sealed(tmp_path / "attempt" / "rank-0")
    (pid,) = wait_until(lambda: processes(tmp_path))
    wait_until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 19)
    shared = Path(f"/proc/{pid}/autogroup")  # of its session, where the processor is shared among those first
    if shared.exists():
        wait_until(lambda: shared.read_text().endswith("nice 19\n"), 20.0)
    helper.finish()
    wait_until(lambda: not processes(tmp_path))


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_it_is_switched_off(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(beside.LiveHelper, "_start", started.append)
    monkeypatch.setenv("MLD_LIVE", "0" if how == "environment" else "1")
    train_digits(tmp_path, 1, store=tmp_path / "store", live=how != "argument")
    assert not started


class Killer(pl.Callback):
    """Kills the process beside the training in the middle of the training."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.killed: list[int] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            self.killed = wait_until(lambda: processes(self.store))
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)


def test_a_killed_process_is_started_again_and_finds_what_is_left(tmp_path: Path) -> None:
    killer = Killer(tmp_path / "store")
    train_digits(tmp_path, 4, killer, store=tmp_path / "store")
    assert killer.killed
    rows = complete(tmp_path / "store", 6)
    assert {(row["dataset"], row["n_epoch"]) for row in rows} >= {
        (split, epoch) for split in ("train", "val") for epoch in (2, 3)
    }


def _ended(text: str, folder: Path) -> Process:
    """A process of its own, in which the frameworks are imported already, that has run the text."""
    script = folder / "script.py"
    script.write_text(text)
    process = Process(script, folder)
    process.wait(300)
    return process


def test_a_killed_training_leaves_the_figures_of_what_it_sealed(tmp_path: Path) -> None:
    done = _ended(KILLED, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    rows = complete(tmp_path, 4)
    assert {row["n_epoch"] for row in rows} == {0, 1}
    wait_until(lambda: not processes(tmp_path), 30)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is counted on Linux alone")
def test_without_its_memory_it_is_off_and_says_so_once(tmp_path: Path) -> None:
    done = _ended(CRAMPED, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Passes are no longer evaluated while the training goes on") == 1
    assert "MB of memory are free" in done.stderr
    assert not rows_of(tmp_path)
    limited = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert limited.stdout == "it asks for 1074 MB, and a process here may have 1000 MB of memory\n"
