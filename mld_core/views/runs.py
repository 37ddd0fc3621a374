"""The runs of a store as the first page lists them: state, metric, categories, and what to do first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.codes.diagnosis import shown as shown_as
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.errors import FilterError
from mld_core.evaluation.results.database import connected
from mld_core.evaluation.results.expression import compile_filter, quoted
from mld_core.evaluation.results.store import ResultStore
from mld_core.evaluation.results.tables import split_order
from mld_core.records.format.attempts import list_attempts, list_passes
from mld_core.records.format.layout import RunKey, Store, subfolders
from mld_core.views.evaluation import finding_filter
from mld_core.views.tables import plain
from mld_core.views.training.state import state_of
from mld_core.views.words.sentences import WRONG_LABELS, headline

SEARCH_HELP = "accuracy > 0.9 and tag = 'night'"
RESULTS_READ = 12
RUNS_ASKED = 50

_MAIN = {
    "classification": (("accuracy", "Accuracy"),),
    "detection": (("auprc", "mAP"),),
    "detection3d": (("nds", "NDS"), ("auprc", "mAP")),
}
_SEARCHED = ("accuracy", "auprc", "nds", "error_rate")
_READ = [
    *("dataset", "n_epoch", "counts", "count_labeled", "count_error", *_SEARCHED),
    *(f"{name}_ratio" for name in CATEGORIES),
]
"""Columns of the tables of a result that a line needs."""

_FIELDS = pa.schema(
    [
        *(
            pa.field(name, pa.string())
            for name in ("model", "version", "task", "state", "note", "created_at")
        ),
        pa.field("tag", pa.list_(pa.string())),
        *(pa.field(name, pa.float64()) for name in ("metric", "accuracy", "auprc", "nds", "error_rate")),
        *(pa.field(name, pa.int64()) for name in ("wrong_labels", "epochs", "samples")),
    ]
)
"""What a search may name."""


def newest_run(store: Store, runs: Sequence[RunKey]) -> RunKey:
    """The run that was recorded last; of very many, among those that were made last."""
    made = {run: str(store.run_info(run).get("created_at", "")) for run in runs}
    last = sorted(runs, key=lambda run: made[run])[-RUNS_ASKED:]

    def newest(run: RunKey) -> tuple[str, str]:
        """The newest attempt's name begins with the time of the launch."""
        attempts = (path for key in list_passes(store, run) for path in subfolders(store.pass_dir(run, key)))
        return max((path.name for path in attempts), default=""), made[run]

    return max(last, key=newest)


def evaluate_command(run: RunKey) -> str:
    """The command that evaluates a run, to copy."""
    names = [
        one if re.fullmatch(r"[\w.@%+:,/-]+", one) else f"'{one}'"
        for one in (run.model_name, run.version_name)
    ]
    return f"mld evaluate {names[0]} {names[1]}"


def run_row(store: Store, run: RunKey) -> dict[str, Any]:
    """One run as the page lists it."""
    info = store.run_info(run)
    keys = list(list_passes(store, run))
    results = ResultStore(store, run)
    made = results.all()
    task = str(info.get("task") or (made[-1].get("task") if made else None) or "classification")
    row: dict[str, Any] = {
        "model": run.model_name,
        "version": run.version_name,
        "task": task,
        "created_at": info.get("created_at"),
        "splits": sorted({key.dataset_type for key in keys}, key=split_order),
        "epochs": len({key.n_epoch for key in keys}),
        "results": [str(one["result_name"]) for one in made],
        "tags": [str(one) for one in info.get("tags") or []],
        "note": str(info.get("note") or ""),
        "archived": bool(info.get("archived")),
    }
    stands = state_of(store, run, keys)
    state = stands.name if stands.name in {"training", "died"} else "evaluated" if made else "recorded"
    texts = {
        "training": "training now",
        "died": stands.text,
        "evaluated": "trained and evaluated",
        "recorded": "recorded, not evaluated yet" if keys else "nothing is recorded yet",
    }
    row |= {"state": state, "state_text": texts[state]}
    row["command"] = None if made else evaluate_command(run)
    row |= _found(results, made, task) if made else dict.fromkeys(_EVALUATED)
    row["samples"] = row["samples"] or 0
    row["spark"] = row["spark"] or []
    return row


_EVALUATED = ("samples", "metric", "spark", "categories", "action", "result", "headline", "values")


def _found(results: ResultStore, made: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
    """What the results of a run say: the metric of every evaluated epoch, the newest's categories."""
    newest = made[-1]
    rows = _metrics(results, newest)
    shown = next((one for name in ("val", "test") for one in reversed(rows) if one["dataset"] == name), None)
    shown = shown or (rows[-1] if rows else {})
    split = shown.get("dataset")
    name, title = next(
        (
            (name, title)
            for name, title in _MAIN.get(task, _MAIN["classification"])
            if shown.get(name) is not None
        ),
        _MAIN.get(task, _MAIN["classification"])[0],
    )
    series: dict[int | None, float | None] = {}
    for info in made[-RESULTS_READ:]:
        for row in rows if info is newest else _metrics(results, info):
            if row["dataset"] == split:
                series[row["n_epoch"]] = row.get(name)
    line = [series[epoch] for epoch in sorted(series, key=lambda one: -2 if one is None else one)]
    known = {epoch: value for epoch, value in series.items() if value is not None}
    best = max(known, key=lambda epoch: known[epoch]) if known else None
    facts = [one for one in newest.get("facts", []) if one["dataset"] == split]
    counts = {code: int(n) for code, n in (facts[-1].get("code_counts") or {}).items() if n} if facts else {}
    action = _action(counts, split, (facts[-1].get("sure_counts") if facts else None) or counts)
    suspects = sum(n for code, n in counts.items() if code in WRONG_LABELS)
    boxes = task != "classification"
    judged = int(shown.get("count_labeled") or 0)
    said = headline(int(shown.get("count_error") or 0), judged, suspects, action, boxes=boxes, selected=False)
    return {
        "samples": int(shown.get("counts") or 0),
        "metric": {
            "name": name,
            "title": title,
            "better": "up",
            "last": shown.get(name),
            "best": known.get(best) if known else None,
            "best_epoch": best,
            "split": split,
        },
        "spark": line,
        "categories": _categories(results, newest, shown),
        "action": action,
        "result": str(newest["result_name"]),
        "headline": said,
        "values": {
            **{one: shown.get(one) for one in ("accuracy", "auprc", "nds", "error_rate")},
            "wrong_labels": suspects,
        },
    }


def _metrics(results: ResultStore, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _rows(results, info, "metrics")


def _rows(results: ResultStore, info: Mapping[str, Any], table: str) -> list[dict[str, Any]]:
    path = results.folder(str(info["result_name"])) / f"{table}.parquet"
    try:
        with pq.ParquetFile(
            path, memory_map=True
        ) as file:  # one thread and few columns: it is read of thousands
            found = file.read(_READ, use_threads=False).to_pylist()
    except (OSError, pa.ArrowInvalid):  # removed while it was read
        return []
    return [
        {name: value if isinstance(value, list) else plain(value) for name, value in row.items()}
        for row in found
    ]


def _categories(
    results: ResultStore, info: Mapping[str, Any], shown: Mapping[str, Any]
) -> dict[str, float] | None:
    place = (shown.get("dataset"), shown.get("n_epoch"))
    for row in _rows(results, info, "categories"):
        if (row["dataset"], row["n_epoch"]) == place and row.get(f"{CATEGORIES[0]}_ratio") is not None:
            return {name: float(row.get(f"{name}_ratio") or 0.0) for name in CATEGORIES}
    return None


def _action(counts: Mapping[str, int], split: Any, sure: Mapping[str, int]) -> dict[str, Any] | None:
    """The gravest diagnosis: what to do about how many units."""
    said = {code: shown_as(BY_CODE[code], bool(sure.get(code))) for code in counts if code in BY_CODE}
    known = [code for code, (severity, _) in said.items() if severity >= 3]
    if not known:
        return None
    code = min(known, key=lambda one: (-said[one][0], -counts[one], one))
    found = BY_CODE[code]
    return {
        "text": f"{found.title}: {said[code][1]}",
        "title": found.title,
        "finding": code,
        "n": counts[code],
        "filter": finding_filter(code),
        "split": split,
    }


# -- search --------------------------------------------------------------------------------------------------


def find_runs(rows: Sequence[dict[str, Any]], search: str, sort: str) -> list[dict[str, Any]]:
    """The runs a search asks for, in an order.

    Args:
        rows: What `run_row` gave.
        search: Words that must all occur, or a filter of the view grammar, e.g. `accuracy > 0.9 and
            tag = 'night'`.
        sort: Columns, `-` before one for descending; empty = those made last first.

    Raises:
        FilterError: The search or the order names what is not there.
    """
    table = pa.Table.from_pylist([_searched(row) for row in rows], _FIELDS)
    words = search.strip()
    condition = "true"
    parameters: list[Any] = []
    if words and re.search(r"[<>=]|\b(?:has|contains|is|in|between)\b", words):
        asked = re.sub(r"\btags?\s*==?\s*(?=['\"])", "tag has ", words)
        compiled = compile_filter(asked, _FIELDS, {"tags": "tag"})
        condition, parameters = compiled.sql, list(compiled.parameters)
        words = ""
    by = ", ".join(_by(name) for name in (sort or "-created_at").split(","))
    with connected() as connection:
        connection.register("runs", table.append_column("place_", pa.array(range(len(rows)), pa.int64())))
        sql = f"SELECT place_ FROM runs WHERE {condition} ORDER BY {by}, place_"  # noqa: S608  quoted names only
        found = [rows[place] for (place,) in connection.execute(sql, parameters).fetchall()]
    return [row for row in found if _holds(row, words)]


def _by(name: str) -> str:
    bare = name.strip().removeprefix("-")
    if bare not in _FIELDS.names:
        raise FilterError(f"sort {bare!r}: expected one of {', '.join(_FIELDS.names)}")
    return f"{quoted(bare)} {'DESC' if name.strip().startswith('-') else 'ASC'} NULLS LAST"


def _searched(row: Mapping[str, Any]) -> dict[str, Any]:
    metric = row["metric"] or {}
    return {**row, **(row["values"] or {}), "tag": row["tags"], "metric": metric.get("last")}


def _holds(row: Mapping[str, Any], words: str) -> bool:
    text = " ".join([row["model"], row["version"], row["note"], *row["tags"]]).casefold()
    return all(word in text for word in words.casefold().split())


def passes_listed(store: Store, run: RunKey) -> list[dict[str, Any]]:
    """The recorded passes of a run: split, epoch, whether every rank finished the last attempt at it."""
    made = []
    for key in list_passes(store, run):
        attempts = list_attempts(store, run, key)
        sealed = bool(attempts) and attempts[-1].sealed
        made.append({"split": key.dataset_type, "epoch": key.n_epoch, "pass": key.pass_no, "sealed": sealed})
    return made
