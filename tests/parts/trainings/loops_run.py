"""Runs `loops_script.py` once per number of ranks, for the tests that look at what it left."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
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


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def torchrun(world: int, *command: Any, store: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script on `world` ranks, or as it is on one."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", world, "--master_port", free_port()]
    environment = {
        **os.environ,
        "MLD_HOME": str(store),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
    }
    whole = [sys.executable, *(launcher if world > 1 else []), *command]
    return subprocess.run(
        [str(part) for part in whole],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@functools.cache
def loops(world: int, frameworks: tuple[str, ...]) -> Path:
    """The folder of a run of all these frameworks: `store` and `collectives-<rank>.json`."""
    root = Path(tempfile.mkdtemp(prefix=f"mld-loops-{world}-"))
    done = torchrun(world, TRAININGS / "loops_script.py", root, ",".join(frameworks), store=root / "store")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return root


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
