"""Five minutes with Keras: the program of the page, run as it stands, prints what the page says it prints.

Runs in .venv-keras (`.ci/keras-env` builds it) and is skipped elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras_cv", reason="KerasCV is not installed: run this in .venv-keras")

from docs_parts import DOCS, blocks, not_printed

from ml_debugger.records import load
from mld_core.records.format.layout import Store

PAGE = DOCS / "learn" / "keras.md"


def test_the_program_runs(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(blocks(PAGE)["train"], encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLD_")}
    env |= {"MLD_HOME": str(tmp_path / "store"), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, "train.py"],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # Where a package that Keras imports sets the root logger up (TensorFlow 2.16's do), messages have its form.
    printed = (done.stderr + done.stdout).replace("WARNING:ml_debugger:", "ml_debugger: ")
    assert not_printed(PAGE, printed, tmp_path / "store") == []
    samples = load("shapes", "v1", store=Store(tmp_path / "store"))
    assert samples["input_id"].to_pylist() == [f"picture-{number}" for number in range(8)] * 2
    assert samples["n_truths"].to_pylist() == [1] * 16
