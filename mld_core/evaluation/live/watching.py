"""The `epochs` table for a terminal: curves, category shares and findings, or one line for each pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mld_core.evaluation.codes.categories import MEANINGS
from mld_core.evaluation.live.figures import METRICS
from mld_core.records.format.layout import RunKey

CURVES: Final = (
    ("accuracy", "accuracy"),
    ("net_entropy_loss_mean", "loss"),
    ("auroc", "auroc"),
    ("auprc", "auprc"),
    ("precision", "precision"),
    ("recall", "recall"),
)
"""Metrics that are shown, and what they are called."""

CATEGORIES: Final = tuple(MEANINGS)
COLUMNS: Final = (
    *("dataset", "n_epoch", "pass_no", "rows", "state"),
    *(name for name, _ in CURVES),
    *("error_proba_auroc", *CATEGORIES, "wrong_labels", "finding"),
)
"""Of the line of a pass."""

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 40
_FINDINGS: Final = 5


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table as `COLUMNS`; what is not known is None."""
    analysis = row["analysis"] or {}
    shares = analysis.get("categories", {})
    gravest = (analysis.get("findings") or [None])[0]
    return {
        **{name: row[name] for name in ("dataset", "n_epoch", "pass_no", "rows", "state")},
        **{name: row["metrics"].get(name) for name, _ in CURVES},
        "error_proba_auroc": analysis.get("metrics", {}).get("error_proba_auroc"),
        **{name: shares.get(f"{name}_ratio") for name in CATEGORIES},
        "wrong_labels": analysis.get("wrong_labels"),
        "finding": None if gravest is None else f"{gravest['code']} {gravest['title']}: {gravest['counts']}",
    }


def finished(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows to which nothing will be added."""
    return [row for row in rows if row["state"] != METRICS]


def sparkline(values: Sequence[float | None]) -> str:
    """A curve in one line of text: the last `_WIDTH` values, a blank where there is none.

    Example:
        >>> sparkline([0.0, None, 0.5, 1.0])
        '▁ ▅█'
    """
    some = values[-_WIDTH:]
    known = [value for value in some if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    step = (high - low) / (len(_BLOCKS) - 1) or 1.0
    return "".join(" " if one is None else _BLOCKS[round((one - low) / step)] for one in some)


def screen(run: RunKey, rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """All of it for a person: curves of each split, shares of categories, the gravest findings."""
    title = Text(f"{run.model_name} {run.version_name}", style="bold")
    if not rows:
        return Group(title, Text("no pass is evaluated yet", style="dim"))
    parts: list[RenderableType] = [title, _curves(rows)]
    last = {str(row["dataset"]): row for row in rows if row["analysis"]}
    if last:
        parts += [Text(), _shares(last), Text(), _findings(last)]
    notes = {note for row in rows[-len(last) - 2 :] for note in row["notes"]}
    parts += [Text(note, style="dim") for note in sorted(notes)]
    return Group(*parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name, justify="left", no_wrap=place < len(columns) - 1)
    return table


def _curves(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("split", "epoch", "metric", "now", "best", "curve")
    for split in dict.fromkeys(str(row["dataset"]) for row in rows):
        own = [row for row in rows if row["dataset"] == split]
        epoch = own[-1]["n_epoch"]
        for name, called in CURVES:
            values = [_number(row["metrics"].get(name)) for row in own]
            known = [value for value in values if value is not None]
            if known:
                best = min(known) if called == "loss" else max(known)
                now = "" if values[-1] is None else f"{values[-1]:.4f}"
                place = ("-" if epoch is None else str(epoch)) if called == "accuracy" else ""
                shown = split if called == "accuracy" else ""
                table.add_row(shown, place, called, now, f"{best:.4f}", sparkline(values))
    return table


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _shares(last: Mapping[str, Mapping[str, Any]]) -> Table:
    heads = [f"{split} {row['n_epoch']}" for split, row in last.items()]
    table = _table("category", *heads)
    for name in CATEGORIES:
        found = (row["analysis"]["categories"].get(f"{name}_ratio") for row in last.values())
        table.add_row(name, *("" if share is None else f"{share:6.1%}" for share in found))
    wrong = (f"{row['analysis']['wrong_labels']} of {row['analysis']['of']}" for row in last.values())
    table.add_row("wrong labels", *wrong)
    return table


def _findings(last: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("split", "finding", "severity", "units", "what to do")
    for split, row in last.items():
        for one in row["analysis"]["findings"][:_FINDINGS]:
            named = f"{one['code']} {one['title']}"
            table.add_row(split, named, str(one["severity"]), str(one["counts"]), one["action"])
    return table
