"""Trainers of the Hugging Face kind over `loop_parts`, and what they recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from loop_parts import Indexed, Net
from transformers import Trainer, TrainingArguments

from ml_debugger.huggingface import MLDebuggerCallback
from mld_core.records.format.layout import Store
from mld_core.records.read.reader import load, select


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Quiet, on the CPU, batches of 2; nothing saved unless asked for."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    return TrainingArguments(**{**defaults, **options})


def trainer(
    folder: Path, *callbacks: Any, model: Any = None, train: Any = 7, val: Any = None, **options: Any
) -> Trainer:
    """A Trainer with our callback, unless callbacks are given."""
    more = {key: options.pop(key) for key in ("data_collator", "model_init") if key in options}
    return Trainer(
        model=None if "model_init" in more else model or Net(),
        args=arguments(folder, **options),
        train_dataset=Indexed(train) if isinstance(train, int) else train,
        eval_dataset=Indexed(val) if isinstance(val, int) else val,
        callbacks=list(callbacks) or [MLDebuggerCallback()],
        **more,
    )


def rows(version: str = "v1", model: str = "Net", **which: Any) -> pd.DataFrame:
    """All sample rows with their vectors; `feature0` is the index the feature holds."""
    samples = load(model, version, **which).to_pandas()
    vectors = load(model, version, table="vectors", **which).to_pandas()
    keys = ["dataset_type", "n_epoch", "pass_no", "rank_", "unit"]
    table = samples.merge(vectors.drop(columns="input_id"), on=keys, validate="one_to_one")
    if "features" in table:
        table["feature0"] = [np.nan if f is None else f[0] for f in table.features]
    return table


def ids(table: pd.DataFrame, split: str, n_epoch: int | None = 0, pass_no: int = 0) -> list[str]:
    """The ids of one pass, sorted as numbers."""
    epoch = table.n_epoch.isna() if n_epoch is None else table.n_epoch == n_epoch
    chosen = table[(table.dataset_type == split) & epoch & (table.pass_no == pass_no)]
    return sorted(chosen.input_id, key=int)


def sealed(version: str = "v1", model: str = "Net") -> dict[tuple[str, int | None, int], bool]:
    """Whether each pass is sealed."""
    store = Store()
    [run] = [r for r in store.runs() if (r.model_name, r.version_name) == (model, version)]
    found = select(store, run, n_epoch=None, passes="all")
    return {(s.key.dataset_type, s.key.n_epoch, s.key.pass_no): s.sealed for s in found}


def upto(n: int) -> list[str]:
    """["0", .., "n-1"]."""
    return [str(i) for i in range(n)]
