"""Runs `loops_script.py` once, for the tests that look at what it left."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import once
import pandas as pd
from folders import TRAININGS

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import PassSelection, load, select

FRAMEWORKS = ["lightning", "huggingface", "mmengine", "accelerate", "fabric", "torch", "plain"]
_PACKAGES = {"huggingface": "transformers", "fabric": "lightning", "plain": "torch"}


def installed() -> list[str]:
    """Those of the frameworks that are here."""
    return [name for name in FRAMEWORKS if importlib.util.find_spec(_PACKAGES.get(name, name))]


def _run(root: Path, *runs: str) -> None:
    """Run the script; it raises what the script said if it failed."""
    done = subprocess.run(
        [sys.executable, TRAININGS / "loops_script.py", root, *runs],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def _all(root: Path) -> None:
    names = ",".join(installed())
    tokens = ",tokens" if "huggingface" in names else ""
    _run(root, f"1:{names}", f"2:{names},uneven,unchanged,repeated{tokens}", f"4:{FRAMEWORKS[0]}")


def loops(world: int) -> Path:
    """The folder of the run on so many ranks, four of them in one framework: `store`, `collectives-<rank>.json`."""
    return once.made("loops", _all) / str(world)


def all_on_four() -> Path:
    """The folder of the run of all frameworks on four ranks."""
    names = ",".join(installed())
    return once.made("loops-four", lambda root: _run(root, f"4:{names}")) / "4"


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
