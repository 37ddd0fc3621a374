"""The MMEngine hook across real processes: ranks, kills, a rank that raises, a resume in a new process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from folders import TRAININGS

pytest.importorskip("mmengine")

from mmengine_parts import VAL_OFFSET, assert_ids_are_content, ids_of, passes, summary

pytestmark = [pytest.mark.processes, pytest.mark.slow]
SCRIPT = TRAININGS / "mmengine_script.py"
ENV = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(work_dir: Path, *more: str, ranks: int = 1) -> list[str]:
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    return [sys.executable, *torchrun, str(SCRIPT), str(work_dir), *more]


def run(work_dir: Path, *more: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(work_dir, *more, ranks=ranks),
        env={**os.environ, **ENV},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_11_two_ranks_lose_nothing_and_repeat_nothing(store: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "work", "--trace", ranks=2)
    assert done.returncode == 0, done.stderr
    found = {(p.key.dataset_type, p.key.n_epoch): p for p in passes(store)}
    assert sorted(found) == [("train", 0), ("train", 1), ("val", 0), ("val", 1)]
    for (split, _), selection in found.items():
        assert selection.sealed
        offset = 0 if split == "train" else VAL_OFFSET
        assert_ids_are_content(selection, offset)
        size = 21 if split == "train" else 9
        assert set(ids_of(selection)) == {str(i) for i in range(size)}
        assert set(selection.table("samples").column("rank_").to_pylist()) == {0, 1}
        # The sampler rounds up to an even number: train keeps what was drawn, validation counts once.
        assert selection.n_rows == (22 if split == "train" else 9)
        assert selection.report.duplicates_dropped == (0 if split == "train" else 1)
    collectives = [line for line in done.stdout.splitlines() if line.startswith("COLLECTIVE")]
    assert collectives == ["COLLECTIVE broadcast_object_list"] * 2, "one at set-up on each rank, none later"


def start(work_dir: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(work_dir, *more),
        env={**os.environ, **ENV},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_for_rows(store: Path, split: str, n_epoch: int, rows: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [p for p in passes(store, split=split) if p.key.n_epoch == n_epoch] if store.exists() else []
        if found and found[0].n_rows >= rows:
            return
        time.sleep(0.2)
    raise AssertionError(f"no {rows} rows of {split} {n_epoch} within a minute")


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_10_a_killed_training_is_readable_and_goes_on(store: Path, tmp_path: Path, kill: int) -> None:
    process = start(tmp_path / "work", "--slow", "0.3")
    try:
        wait_for_rows(store, "train", 1, 4)
    finally:
        os.kill(process.pid, kill)
        process.wait(30)
    before = summary(store)
    assert before[0] == ("train", 0, 0, 21)
    assert [p.sealed for p in passes(store)] == [True, False, True]
    assert_ids_are_content(passes(store, split="train")[1])

    resumed = run(tmp_path / "work", "--resume", "--epochs", "3")
    assert resumed.returncode == 0, resumed.stderr
    assert summary(store) == [(s, e, 0, n) for s, n in (("train", 21), ("val", 9)) for e in range(3)]
    for selection in passes(store):
        assert selection.sealed
        assert max(Counter(ids_of(selection)).values()) == 1


def test_a_rank_that_raises_fails_as_without_us(store: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    done: Any = run(tmp_path / "work", "--raise-at", "2", ranks=2)
    assert done.returncode != 0
    assert "planted in the user's step" in done.stderr
    assert time.monotonic() - begun < 120, "nobody waits for a collective of ours"
    (selection,) = passes(store)
    assert not selection.sealed
    assert_ids_are_content(selection)
