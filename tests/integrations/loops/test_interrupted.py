"""Ctrl-C in the middle of a training: what is there is on disk, sealed where it was finished, and it is said."""

import importlib.util
import signal
import time
from pathlib import Path

import pytest
from folders import TRAININGS
from zygote import Process

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select

pytestmark = [pytest.mark.processes, pytest.mark.slow]
PACKAGES = {"huggingface": "transformers", "lightning": "lightning", "torch": "torch"}


def until(process: Process, there, limit: float = 120) -> None:
    deadline = time.monotonic() + limit
    while not there():
        assert process.poll() is None, process.stdout + process.stderr
        assert time.monotonic() < deadline, process.stdout + process.stderr
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("framework", "lives_on"),
    [("huggingface", False), ("huggingface", True), ("lightning", False), ("torch", False)],
)
def test_ctrl_c(framework: str, lives_on: bool, tmp_path: Path, store: Path) -> None:
    if importlib.util.find_spec(PACKAGES[framework]) is None:
        pytest.skip(f"{PACKAGES[framework]} is not installed")
    script = TRAININGS / "interrupted_script.py"
    process = Process(script, framework, tmp_path, *(["--lives-on"] if lives_on else []))
    try:
        until(process, (tmp_path / "inside").exists)
        process.send_signal(signal.SIGINT)
        if lives_on:
            until(process, lambda: "rows recorded" in process.stderr)
            assert "left before its end" in process.stderr
        else:
            assert process.wait(60) != 0
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    found = {
        (one.key.dataset_type, one.key.n_epoch): (one.sealed, one.n_rows)
        for one in select(Store(store), RunKey("Net", "v1"), n_epoch=None, passes="all")
    }
    rows = 4 if framework == "huggingface" else 6  # its loader is a batch ahead
    assert found == {("train", 0): (True, 8), ("val", 0): (True, 4), ("train", 1): (False, rows)}
    assert f"{12 + rows} rows recorded" in process.stderr, process.stderr
    assert "partial" in process.stderr
