"""The MMEngine hook across real processes: ranks, kills, a rank that raises, a resume in a new process."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from folders import TRAININGS

pytest.importorskip("mmengine")

from mmengine_parts import VAL_OFFSET, assert_ids_are_content, ids_of, passes, summary
from zygote import Process, started

pytestmark = [pytest.mark.processes, pytest.mark.slow]
SCRIPT = TRAININGS / "mmengine_script.py"
ENV = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(work_dir: Path, *more: str) -> Process:
    return Process(SCRIPT, work_dir, *more, env={**os.environ, **ENV})


def run_ranks(work_dir: Path, *more: str) -> list[Process]:
    """Two ranks, at their end."""
    both = started(2, SCRIPT, work_dir, *more, **ENV)
    for rank in both:
        rank.wait()
    return both


def test_11_two_ranks_lose_nothing_and_repeat_nothing(store: Path, tmp_path: Path) -> None:
    both = run_ranks(tmp_path / "work", "--trace")
    assert [rank.returncode for rank in both] == [0, 0], [rank.stderr for rank in both]
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
    for rank in both:
        collectives = [line for line in rank.stdout.splitlines() if line.startswith("COLLECTIVE")]
        assert collectives == ["COLLECTIVE broadcast_object_list"], "one at set-up on each rank, none later"


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
        process.send_signal(kill)
        process.wait(30)
    before = summary(store)
    assert before[0] == ("train", 0, 0, 21)
    assert [p.sealed for p in passes(store)] == [True, False, True]
    assert_ids_are_content(passes(store, split="train")[1])

    resumed = start(tmp_path / "work", "--resume", "--epochs", "3")
    assert resumed.wait() == 0, resumed.stderr
    assert summary(store) == [(s, e, 0, n) for s, n in (("train", 21), ("val", 9)) for e in range(3)]
    for selection in passes(store):
        assert selection.sealed
        assert max(Counter(ids_of(selection)).values()) == 1


def test_a_rank_that_raises_fails_as_without_us(store: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    both = run_ranks(tmp_path / "work", "--raise-at", "2")
    assert all(rank.returncode != 0 for rank in both)
    assert "planted in the user's step" in both[1].stderr
    assert time.monotonic() - begun < 120, "nobody waits for a collective of ours"
    (selection,) = passes(store)
    assert not selection.sealed
    assert_ids_are_content(selection)
