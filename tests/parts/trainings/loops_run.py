"""Runs `loops_script.py` once, for the tests that look at what it left."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pandas as pd
from folders import TRAININGS

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import PassSelection, load, select

FRAMEWORKS = ["lightning", "huggingface", "mmengine", "accelerate", "fabric", "torch", "plain"]
_PACKAGES = {"huggingface": "transformers", "fabric": "lightning", "plain": "torch"}


def installed() -> list[str]:
    """Those of the frameworks that are here."""
    return [name for name in FRAMEWORKS if importlib.util.find_spec(_PACKAGES.get(name, name))]


@functools.cache
def _root() -> Path:
    """The folder of one run of all frameworks on 1, 2 and 4 ranks, for all workers of a test run."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
    root = Path(tempfile.gettempdir(), f"mld-loops-{run}")
    root.mkdir(exist_ok=True)
    with Path(f"{root}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not any(root.iterdir()):
            names = ",".join(installed())
            done = subprocess.run(
                [
                    sys.executable,
                    TRAININGS / "loops_script.py",
                    root,
                    f"1:{names}",
                    f"2:{names},uneven,unchanged",
                    f"4:{names}",
                ],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "ACCELERATE_USE_CPU": "true",
                    "HF_HUB_OFFLINE": "1",
                },
                capture_output=True,
                text=True,
                timeout=580,
                check=False,
            )
            (root / "said").write_text(done.stdout[-3000:] + done.stderr[-6000:])
            (root / "code").write_text(str(done.returncode))
    assert (root / "code").read_text() == "0", (root / "said").read_text()
    return root


def loops(world: int) -> Path:
    """The folder of the run on so many ranks: `store` and `collectives-<rank>.json`."""
    return _root() / str(world)


def collectives(root: Path, rank: int) -> list[dict[str, Any]]:
    """The collectives a rank took part in: framework, call, innermost function of ours or None."""
    found: list[dict[str, Any]] = json.loads((root / f"collectives-{rank}.json").read_text())
    return found


def passes(root: Path, model: str) -> list[PassSelection]:
    """Every pass of a run."""
    return select(Store(root / "store"), RunKey(model, "v1"), n_epoch=None, passes="all")


def table(root: Path, model: str) -> pd.DataFrame:
    """(dataset_type, n_epoch, rank_, unit) -> input_id, logits, features."""
    columns = ["dataset_type", "n_epoch", "rank_", "unit", "input_id", "logits", "features"]
    return load(model, "v1", table="vectors", store=root / "store").to_pandas()[columns]
