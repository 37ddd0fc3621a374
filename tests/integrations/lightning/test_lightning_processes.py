"""The Lightning callback across real processes: ranks, spawned workers, signals, kills."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from folders import TRAININGS
from lightning_parts import assert_ids_are_content, ids_of, passes
from zygote import Process, started

SCRIPT = TRAININGS / "lightning_script.py"
pytestmark = [pytest.mark.processes, pytest.mark.slow]


def finish(process: Process, code: int | None = 0) -> str:
    process.wait()
    said = process.stdout + process.stderr
    assert code is None or process.returncode == code, said
    return said


@pytest.mark.parametrize(
    "strategy",  # "ddp" starts the script again: so do the ranks of test_run_command's launcher
    [
        pytest.param("ddp", marks=pytest.mark.heavy),
        "ddp_fork",
        pytest.param("ddp_spawn", marks=pytest.mark.heavy),
    ],
)
def test_11_12_two_ranks_together_record_the_whole_dataset(
    store: Path, tmp_path: Path, strategy: str
) -> None:
    argv = [SCRIPT, tmp_path, 2, "--devices", 2, "--strategy", strategy, "--size", 22]
    if strategy == "ddp_fork":  # Lightning forks the ranks: the frameworks are there already
        finish(Process(*argv))
    else:
        argv = [sys.executable, *argv]
        done = subprocess.run(
            [str(one) for one in argv], capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    found = passes(store)
    assert [(p.key.dataset_type, p.key.n_epoch) for p in found] == [
        ("train", 0),
        ("train", 1),
        ("val", 0),
        ("val", 1),
    ]
    for selection in found:
        assert selection.sealed
        assert not selection.missing_ranks
        assert_ids_are_content(selection)
        counts = Counter(ids_of(selection))
        if selection.key.dataset_type == "val":
            assert counts == {str(i): 1 for i in range(10)}, "the sampler's padding is dropped at read"
        else:
            assert set(counts) == {str(i) for i in range(22)}
        assert set(selection.table("samples").column("rank_").to_pylist()) == {0, 1}


def test_10_sigterm_keeps_the_rows(store: Path, tmp_path: Path) -> None:
    process = Process(SCRIPT, tmp_path, 50, "--slow", 0.05)
    wait_for_parts(store, process)
    process.send_signal(signal.SIGTERM)
    assert "DONE" not in finish(process, code=None)
    rows = sum(p.n_rows for p in passes(store))
    assert rows >= 4


def test_an_exception_in_the_users_step_on_one_rank(store: Path, tmp_path: Path) -> None:
    ranks = started(
        2, SCRIPT, tmp_path, 1, "--devices", 2, "--strategy", "ddp", "--raise-at", 2, "--size", 32
    )
    said = [finish(rank, code=None) for rank in ranks]
    assert "planted in the user's step" in said[1]
    assert all(rank.returncode != 0 for rank in ranks)
    (selection,) = passes(store, split="train")
    assert not selection.sealed
    assert selection.n_rows >= 16, "two steps of four samples on two ranks"


def wait_for_parts(store: Path, process: Process, timeout: float = 60) -> None:
    """Until the first part is on disk."""
    deadline = time.monotonic() + timeout
    while not any(store.glob("*/*/*/*/*/*/*/part-*")):
        assert process.poll() is None, process.stdout + process.stderr
        assert time.monotonic() < deadline, "no part was written"
        time.sleep(0.02)


@pytest.mark.parametrize("least", [5, pytest.param(20, marks=pytest.mark.heavy)])
def test_10_sigkill_at_random_times_then_resume(store: Path, tmp_path: Path, least: int) -> None:
    """Kills of one training: sealed rows stay, a resume doubles none, and in the end none is missing."""
    rng = random.Random(20261121)
    epochs = 30 if least > 5 else 12

    def training(kill_after: float | None) -> int:
        process = Process(SCRIPT, tmp_path, epochs, "--slow", "0.16", "--resume", "--store", store)
        if kill_after is not None:
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        return process.wait()

    latest, kills, rows = 1.6, 0, False
    while kills < least or not rows:
        assert kills < 60, "none of the killed trainings left a row"
        assert training(rng.uniform(0.3, latest)) == -signal.SIGKILL
        check_rows(store, whole=False)
        kills += 1
        rows = any(store.glob("*/v1")) and bool(passes(store))
        if not rows:  # a slow machine: no training had come so far; whole, it takes nearly 5 s at least
            latest = min(latest * 1.1, 4.5)
    assert training(None) == 0
    check_rows(store, whole=True)
    assert max(p.key.n_epoch for p in passes(store, split="train") if p.sealed) == epochs - 1


def check_rows(store: Path, *, whole: bool) -> None:
    """No sealed pass misses or doubles a row; every row that is readable is right."""
    for selection in passes(store) if any(store.glob("*/v1")) else []:
        ids = ids_of(selection)
        assert not selection.torn
        if ids:
            assert_ids_are_content(selection)
        if selection.key.dataset_type == "val":
            assert max(Counter(ids).values(), default=1) == 1
            if selection.sealed:
                assert len(ids) == 10
    if whole:
        # Every optimizer step that led to the final weights, once, with all its four samples.
        steps: Counter[int] = Counter()
        for selection in passes(store, split="train"):
            assert selection.sealed or selection.n_rows == 0, selection.key
            steps.update(selection.table("samples").column("global_step").to_pylist())
        assert steps == dict.fromkeys(range(len(steps)), 4)
