"""The Lightning callback across real processes: ranks, spawned workers, signals, kills."""

from __future__ import annotations

import json
import os
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

SCRIPT = TRAININGS / "lightning_script.py"
pytestmark = [pytest.mark.processes, pytest.mark.slow]


def start(root: Path, *args: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, SCRIPT, root, *args]
    return subprocess.Popen(
        [str(c) for c in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int | None = 0, timeout: float = 240) -> str:
    output, _ = process.communicate(timeout=timeout)
    assert code is None or process.returncode == code, output
    return output


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_11_12_two_ranks_together_record_the_whole_dataset(
    store: Path, tmp_path: Path, strategy: str
) -> None:
    finish(start(tmp_path, 2, "--devices", 2, "--strategy", strategy, "--size", 22))
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
    process = start(tmp_path, 50, "--slow", 0.05)
    wait_for_parts(store, process)
    process.send_signal(signal.SIGTERM)
    assert "DONE" not in finish(process, code=None)
    rows = sum(p.n_rows for p in passes(store))
    assert rows >= 4


def test_an_exception_in_the_users_step_on_one_rank(store: Path, tmp_path: Path) -> None:
    process = start(tmp_path, 1, "--devices", 2, "--strategy", "ddp", "--raise-at", 2, "--size", 32)
    finish(process, code=None)
    assert process.returncode != 0
    (selection,) = passes(store, split="train")
    assert not selection.sealed
    assert selection.n_rows >= 16, "two steps of four samples on two ranks"


def wait_for_parts(store: Path, process: subprocess.Popen[str], timeout: float = 60) -> None:
    """Until the first part is on disk."""
    deadline = time.monotonic() + timeout
    while not any(store.glob("*/*/*/*/*/*/*/part-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no part was written"
        time.sleep(0.02)


def test_10_sigkill_at_random_times_then_resume(store: Path, tmp_path: Path) -> None:
    """At least 20 kills of one training: sealed rows stay, a resume doubles none, and in the end none is missing."""
    rng = random.Random(20261121)
    server = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def training(kill_after: float | None) -> int:
        argv = [str(tmp_path), "30", "--slow", "0.16", "--resume", "--store", str(store)]
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps({"argv": argv, "kill_after": kill_after}) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    latest, kills, rows = 1.6, 0, False
    while kills < 20 or not rows:
        assert kills < 60, "none of the killed trainings left a row"
        assert training(rng.uniform(0.3, latest)) == -signal.SIGKILL
        check_rows(store, whole=False)
        kills += 1
        rows = any(store.glob("*/v1")) and bool(passes(store))
        if not rows:  # a slow machine: no training had come so far; whole, it takes nearly 5 s at least
            latest = min(latest * 1.1, 4.5)
    assert training(None) == 0
    server.communicate()
    check_rows(store, whole=True)
    assert max(p.key.n_epoch for p in passes(store, split="train") if p.sealed) == 29


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
