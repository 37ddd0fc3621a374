"""What is known of each pass of a run: metrics, shares of the categories, the estimate of wrong labels."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.live.figures import read_figures
from mld_core.evaluation.live.measuring import scalar_metrics
from mld_core.evaluation.results.store import ResultStore
from mld_core.evaluation.results.tables import split_order
from mld_core.records.format.attempts import Attempt, chain, choose, list_attempts, list_passes
from mld_core.records.format.layout import PassKey, RunKey, Store, parse_epoch, subfolders
from mld_core.records.read.reader import PassSelection
from mld_core.views.selection import Recent
from mld_core.views.tables import plain
from mld_core.views.training.state import state_of
from mld_core.views.words.texts import METRIC_TEXTS, MetricText
from mld_core.views.words.texts_detection import DETECTION_METRICS

MOST_KEPT = 20_000
WATCHED_EPOCHS = 24
"""Of each split: what changes in the others is seen once something of these changes, and now and then."""

WRONG_LABELS = MetricText(
    "wrong_labels",
    "Labels that are probably wrong",
    "samples",
    "down",
    "How many of the given labels are estimated to be wrong.",
)
FIRST = ("accuracy", "net_entropy_loss_mean", "error_proba_auroc", "wrong_labels")
FIRST_BOXES = ("nds", "auprc", "accuracy", "error_proba_auroc", "wrong_labels")
"""Metrics that are shown before the others."""

_SHARES = {f"{name}_ratio": name for name in CATEGORIES}
_Place = tuple[str, int | None, int]


@dataclass
class Memory:
    """What was read of passes and results, by what would differ if they had changed."""

    passes: Recent = field(default_factory=lambda: Recent(MOST_KEPT))
    measured: Recent = field(default_factory=lambda: Recent(MOST_KEPT))
    results: Recent = field(default_factory=lambda: Recent(1_000))


def curves(store: Store, run: RunKey, memory: Memory, seconds: float = 0.5) -> dict[str, Any]:
    """A run for the page of its training.

    Args:
        store: The store.
        run: The run.
        memory: What is known from the last time.
        seconds: So long at most, records are read of which nobody has made figures; `unread` says of how many
            passes they are left for the next time.

    Returns:
        The names, `task`, `state` and its text, `splits`, `unread`, `metrics` (those that have a value, in
        words; `first`: looked at first) and `rows`: for each sealed pass `split`, `epoch` (None: unknown),
        `pass`, `sealed_at`, `rows`, where the figures come from (`of`: "result", "live", "records"; `result`
        is its name), `values` by the names of metrics, `categories` (shares; None = not known), `notes`.
    """
    info = store.run_info(run)
    keys = list(list_passes(store, run))
    found = {key: one for key in keys if (one := _sealed(store, run, key, memory)) is not None}
    evaluated = _evaluated(store, run, memory)
    task = str(info.get("task") or next((one["task"] for one in found.values()), "classification"))
    until, unread, rows = time.monotonic() + seconds, 0, []
    texts, first = (METRIC_TEXTS, FIRST) if task == "classification" else (DETECTION_METRICS, FIRST_BOXES)
    for key, one in sorted(found.items(), key=lambda item: item[1]["sealed_at"], reverse=True):
        row = {"split": key.dataset_type, "epoch": key.n_epoch, "pass": key.pass_no, **one["shown"]}
        place = (key.dataset_type, key.n_epoch, key.pass_no)
        known = evaluated.get(place) or one["live"]
        if known is None:
            known = memory.measured.get(one["stamp"])
            if known is None and time.monotonic() < until:
                known = memory.measured.get_or(one["stamp"], partial(_measured, store, run, key, info))
            unread += known is None
        rows.append({**row, **_told(known or _NOTHING, texts)})
    state = state_of(store, run, keys)
    splits = sorted({key.dataset_type for key in found}, key=split_order)
    names_of = {"model": run.model_name, "version": run.version_name, "task": task}
    rows.sort(key=lambda row: (splits.index(row["split"]), row["epoch"] or 0, row["pass"]))
    metrics = _there((*texts, WRONG_LABELS), rows, first)
    told = {"state": state.name, "state_text": state.text, "splits": splits, "unread": unread}
    return {**names_of, **told, "metrics": metrics, "rows": rows}


def _there(
    texts: Sequence[MetricText], rows: Sequence[Mapping[str, Any]], first: Sequence[str]
) -> list[dict[str, Any]]:
    """The metrics that have a value, in words."""
    there = {name for row in rows for name in row["values"]}
    rank = {name: number for number, name in enumerate(first)}
    shown = sorted(
        (one for one in texts if one.name in there), key=lambda one: rank.get(one.name, len(first))
    )
    return [{**vars(one), "first": one.name in first} for one in shown]


@dataclass(frozen=True)
class _Known:
    """Figures of a pass and where they come from."""

    of: str
    metrics: Mapping[str, Any]
    categories: Mapping[str, Any] | None = None
    wrong_labels: int | None = None
    result: str | None = None
    notes: tuple[str, ...] = ()


_NOTHING = _Known("", {})


def _told(known: _Known, texts: Sequence[MetricText]) -> dict[str, Any]:
    values = {one.name: plain(known.metrics.get(one.name)) for one in texts}
    values["wrong_labels"] = known.wrong_labels
    values["count_nonfinite"] = values.get("count_nonfinite") or None  # what is broken, where something is
    shares = {name: plain((known.categories or {}).get(column)) for column, name in _SHARES.items()}
    return {
        "of": known.of,
        "result": known.result,
        "values": {name: value for name, value in values.items() if value is not None},
        "categories": shares if any(share is not None for share in shares.values()) else None,
        "notes": list(known.notes),
    }


# -- passes --------------------------------------------------------------------------------------------------


def watched(store: Store, run: RunKey) -> Iterator[Path]:
    """The folders one of which changes when there is more to tell of a run: they are few, and asked often."""
    folder = store.run_dir(run)
    yield from (folder, store.results_dir(run))
    for split in subfolders(folder):
        yield split
        for epoch in sorted(subfolders(split), key=_number)[-WATCHED_EPOCHS:]:
            yield epoch
            for one in subfolders(epoch):
                yield one
                for attempt in subfolders(one)[-1:]:
                    yield attempt
                    yield from subfolders(attempt)


def _number(epoch: Path) -> float:
    told = parse_epoch(epoch.name)
    return float("-inf") if told is None or told[0] is None else told[0]


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (str(path), 0, 0)
    return (str(path), found.st_mtime_ns, found.st_ino)


def _sealed(store: Store, run: RunKey, key: PassKey, memory: Memory) -> dict[str, Any] | None:
    """What the folder of a pass says, None where no attempt at it is sealed."""
    attempts = subfolders(store.pass_dir(run, key))
    ranks = [rank for attempt in attempts for rank in subfolders(attempt)]
    generation = store.generation(run)
    stamp = (generation, *map(_stamp, [*attempts, *ranks]))
    found: dict[str, Any] | None = memory.passes.get_or(stamp, lambda: _read(store, run, key, generation))
    return found


def _read(store: Store, run: RunKey, key: PassKey, generation: int) -> dict[str, Any] | None:
    attempts = list_attempts(store, run, key)
    chosen = choose(attempts, generation)
    if chosen is None or not chosen.sealed:
        return None
    row = read_figures(chosen.path)
    counted = sum(rank.sealed.rows.get("samples", 0) for rank in chosen.ranks if rank.sealed is not None)
    ranks = [_stamp(rank.path) for rank in chosen.ranks]
    return {
        "shown": {"sealed_at": chosen.sealed_at, "rows": counted},
        "sealed_at": chosen.sealed_at or "",
        "task": str(chosen.opened.meta.get("task") or "classification"),
        "stamp": (generation, *ranks),
        "live": None if row is None else _live(row),
    }


def _live(row: Mapping[str, Any]) -> _Known:
    """What was evaluated beside the training; states of newer releases change nothing of that."""
    analysis = row.get("analysis") or {}
    metrics = {**(row.get("metrics") or {}), **(analysis.get("metrics") or {})}
    notes = tuple(str(one) for one in row.get("notes") or ())
    return _Known("live", metrics, analysis.get("categories"), analysis.get("wrong_labels"), notes=notes)


def _measured(store: Store, run: RunKey, key: PassKey, info: Mapping[str, Any]) -> _Known:
    """The metrics of the scalar columns, which cost little; a pass that cannot be read says why."""
    attempts = list_attempts(store, run, key)
    generation = store.generation(run)
    chosen: Attempt | None = choose(attempts, generation)
    try:
        if chosen is None:
            return _NOTHING
        selection = PassSelection(store, chain(chosen, attempts, generation))
        metrics = scalar_metrics(selection, info)
        torn = int(metrics.get("torn_parts") or 0)
        parts = f"{torn} part of it is torn" if torn == 1 else f"{torn} parts of it are torn"
        return _Known("records", metrics, notes=(parts,) if torn else ())
    except Exception as error:  # noqa: BLE001 - of this pass alone; the others are shown
        return _Known("records", {}, notes=(f"cannot be read: {error}",))


# -- results -------------------------------------------------------------------------------------------------


def _evaluated(store: Store, run: RunKey, memory: Memory) -> dict[_Place, _Known]:
    """What results say of passes; the newest result counts."""
    results = ResultStore(store, run)
    found: dict[_Place, _Known] = {}
    for info in results.all():
        folder = results.folder(str(info["result_name"]))
        stamp = _stamp(folder)
        found |= memory.results.get_or(stamp, partial(_result, folder, info))
    return found


def _result(folder: Path, info: Mapping[str, Any]) -> dict[_Place, _Known]:
    name = str(info["result_name"])
    shares = {_place(row): row for row in _table(folder / "categories.parquet")}
    wrong = {(one["dataset"], one["n_epoch"]): one.get("n_hat") for one in info.get("facts", [])}
    found = {}
    for row in _table(folder / "metrics.parquet"):
        split, epoch, _ = _place(row)
        told = shares.get((split, epoch, 0))
        found[_place(row)] = _Known("result", row, told, wrong.get((split, epoch)), name)
    return found


def _place(row: Mapping[str, Any]) -> _Place:
    return str(row["dataset"]), row["n_epoch"], int(row.get("pass_no") or 0)


def _table(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = pq.read_table(path, use_threads=False).to_pylist()
    except (OSError, pa.ArrowInvalid):  # removed while it was read
        return []
    return found
