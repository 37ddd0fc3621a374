"""transformers.Trainer killed in the middle of an epoch: what was written is readable, a resume completes it."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from folders import TRAININGS

pytest.importorskip("transformers")

from hf_parts import rows, sealed
from zygote import Process

pytestmark = [pytest.mark.processes, pytest.mark.slow]
SCRIPT = TRAININGS / "hf_script.py"


def whole(path: Path) -> bool:
    """Whether a JSON file is there to its end: the Trainer writes it in place."""
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_10_a_killed_training_is_readable_and_goes_on(store: Path, tmp_path: Path, kill: int) -> None:
    process = Process(SCRIPT, tmp_path / "out", "--slow", "0.4")
    try:
        # The checkpoint of step 6 is behind, epoch 1 (steps 4-7) is under way.
        deadline = time.monotonic() + 90
        while not list(store.glob("Net/v1/train/epoch-1/*/*/*/part-*")) or not whole(
            tmp_path / "out" / "checkpoint-6" / "trainer_state.json"
        ):
            assert process.poll() is None, process.stdout + process.stderr
            assert time.monotonic() < deadline, "no part of epoch 1 was written"
            time.sleep(0.02)
    finally:
        process.send_signal(kill)
        process.wait(30)
    assert process.returncode == -kill
    assert sealed()["train", 0, 0], "what was sealed before stays"
    assert not sealed().get(("train", 1, 0), False)
    assert len(rows(dataset_type="val", n_epoch=0)) == 5

    resumed = Process(SCRIPT, tmp_path / "out", "--resume")
    assert resumed.wait() == 0, resumed.stdout + resumed.stderr
    assert sealed() == {(split, epoch, 0): True for split in ("train", "val") for epoch in range(3)}
    table = rows()
    steps = Counter(table[table.dataset_type == "train"].global_step)
    assert steps == dict.fromkeys(range(12), 2), "every step that led to the weights, once, with both samples"
    for epoch in range(3):
        for split, size in (("train", 8), ("val", 5)):
            chosen = table[(table.dataset_type == split) & (table.n_epoch == epoch)]
            assert sorted(chosen.input_id, key=int) == [str(i) for i in range(size)], (split, epoch)
