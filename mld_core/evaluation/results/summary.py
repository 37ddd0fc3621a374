"""How a result looks: in a terminal (rich, 80 columns are enough), in a notebook (HTML), as plain text."""

from __future__ import annotations

import html
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from mld_core.evaluation.codes.categories import MEANINGS
from mld_core.evaluation.codes.diagnosis import Diagnosis, shown
from mld_core.evaluation.results.database import database
from mld_core.evaluation.results.store import ResultStore
from mld_core.evaluation.results.tables import CATEGORY_COLUMNS, METRIC_COLUMNS, RATIO_COLUMNS

MAX_COLUMNS = 4
MAX_CODES = 6
MAX_DIAGNOSES = 6

_METRICS = METRIC_COLUMNS[1:]
_BOX_METRICS = (
    *("counts", "n_gt", "n_pred", "accuracy", "precision", "recall", "auroc", "auprc"),
    *("net_entropy_loss", "net_entropy", "error_proba_auroc", "error_proba_auprc"),
)
_MORE = {
    "coco": ("map_50", "map_75", "dap_cls", "dap_loc", "dap_both", "dap_dupe", "dap_bkg", "dap_miss"),
    "nuscenes": ("nds", "mate", "mase", "maoe", "mave"),
}


Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Cells:
    """A table of texts: the headings and the rows."""

    columns: list[str]
    rows: list[list[str]]

    def dicts(self) -> list[dict[str, str]]:
        """Each row by the headings."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def unit_files(folder: Path, info: Mapping[str, Any]) -> list[Path]:
    """The files of the units of each pass of a result."""
    return [folder / str(one["units"]) for one in info["passes"]]


def read_summary(
    store: ResultStore, folder: Path, info: Mapping[str, Any], diagnoses: Mapping[str, Diagnosis[Any]]
) -> Summary:
    """The summary of a stored result, as `ResultStore.load` found it; `diagnoses` by code.

    It is read without pandas, whose import would be most of the time of a command that prints a summary.
    """
    with database(store.spill, units=unit_files(folder, info)) as connection:
        found = connection.sql(
            "SELECT dataset, n_epoch, category, error_code, count(*) FROM units "
            "WHERE error_code IS NOT NULL AND (is_error OR category IS NOT NULL) "
            "GROUP BY ALL ORDER BY dataset, category, count(*) DESC, error_code"
        ).fetchall()
    keys = ("dataset", "n_epoch", "category", "error_code", "counts")
    codes = [dict(zip(keys, row, strict=True)) for row in found]
    metrics, categories = (
        # A file, not a data set: that would bring pyarrow's own engine with it.
        pq.ParquetFile(folder / f"{name}.parquet").read().to_pylist()
        for name in ("metrics", "categories")
    )
    return Summary(info, metrics, categories, codes, diagnoses)


class Summary:
    """The summary of a result; print it with rich, show it in a notebook, or `str()` it.

    Attributes:
        info: The `result.json`.
        metrics: The rows of `metrics_summary(full=True)`; what has no value is None.
        categories: The rows of `issue_category_summary(full=True)`.
        codes: Dataset, epoch, category, error code and counts, the commonest of each category first.
        diagnoses: What is known of each code.
    """

    def __init__(
        self,
        info: Mapping[str, Any],
        metrics: Rows,
        categories: Rows,
        codes: Rows,
        diagnoses: Mapping[str, Diagnosis[Any]],
    ) -> None:
        self.info = info
        self.metrics = metrics
        self.categories = categories
        self.codes = codes
        self.diagnoses = diagnoses

    @property
    def title(self) -> str:
        """Model and version, and the name of the result."""
        return f"{self.info['model_name']} {self.info['version_name']}: {self.info['result_name']}"

    @property
    def subtitle(self) -> str:
        """Method and time."""
        return f"{self.info['method_name']}, {self.info['completed_at']}"

    @property
    def analysed(self) -> bool:
        """Whether any pass has categories."""
        return any(not _missing(row[name]) for row in self.categories for name in RATIO_COLUMNS)

    @property
    def epochs(self) -> bool:
        """Whether a dataset stands there with several epochs."""
        return len({row["dataset"] for row in self.metrics}) < len(self.metrics)

    def columns(self, table: str) -> tuple[str, ...]:
        """The columns of `metrics_summary()` or `issue_category_summary()`: "metrics" or "categories"."""
        first = METRIC_COLUMNS if table == "metrics" else CATEGORY_COLUMNS
        return (*first, "n_epoch") if self.epochs else first

    def problems(self) -> list[tuple[str, str]]:
        """(severity, sentence) of everything that is wrong with the records, warnings first."""
        found = [(str(one["severity"]), str(one["message"])) for one in self.info["problems"]]
        return sorted(found, key=lambda one: one[0] != "warning")

    def tables(self) -> list[tuple[str, Cells]]:
        """Title and cells (texts) of each table, metrics as rows and datasets as columns."""
        made = [self._figures()]
        last = " of the last epoch" if self.epochs else ""
        if self.analysed:
            made.append(("Issue categories (share of units)", self._meant()))
            made.append((f"What to do (diagnoses{last})", self.actions()))
        made.append((f"Error codes{last}", self._codes()))
        return made

    def notes(self) -> list[str]:
        """What the tables leave out."""
        notes = []
        if len(self.metrics) > MAX_COLUMNS:
            notes.append(
                f"{len(self.metrics) - MAX_COLUMNS} more columns are not shown: metrics_summary() has them "
                "all."
            )
        if not self.analysed:
            notes.append("Issue categories and error probabilities are not computed in this result.")
        return notes

    def _figures(self) -> tuple[str, Cells]:
        """The metrics; of detections what counts are of, and the profile's own."""
        if not any("n_gt" in row for row in self.metrics):
            return "Metrics (entropies: sums in nats)", self._turned(self.metrics, _METRICS)
        profile = next((str(row["profile"]) for row in self.metrics if row["profile"] is not None), "")
        costs = "; dap: what an error type costs in AP50" if profile == "coco" else ""
        title = f"Metrics (counts: frames; auprc: mAP, profile {profile}{costs})"
        return title, self._turned(self.metrics, (*_BOX_METRICS, *_MORE.get(profile, ())))

    def _meant(self) -> Cells:
        """The shares, and what each category means."""
        turned = self._turned(self.categories, RATIO_COLUMNS)
        return Cells([*turned.columns, "means"], [[*row, MEANINGS[row[0]]] for row in turned.rows])

    def actions(self) -> Cells:
        """The gravest diagnoses of each dataset: how many units, and what to do."""
        rows = []
        last = {str(one["dataset"]): one for one in self.info.get("facts", [])}
        for dataset, facts in last.items():
            counts = {code: n for code, n in facts.get("code_counts", {}).items() if n}
            known = self.diagnoses
            sure = facts.get("sure_counts", counts)
            said = {code: shown(known[code], bool(sure.get(code))) for code in counts}
            grave = sorted(counts, key=lambda code: (-said[code][0], -counts[code], code))
            for code in grave[:MAX_DIAGNOSES]:
                severity, action = said[code]
                named = f"{code} {known[code].title}"
                rows.append([dataset, named, f"{severity}", f"{counts[code]}", action])
        return Cells(["dataset", "code", "severity", "counts", "action"], rows)

    def _codes(self) -> Cells:
        """The commonest codes of each category; right units stand there only if there are categories."""
        last = {row["dataset"]: row["n_epoch"] for row in self.metrics}
        groups: dict[tuple[str, str | None], list[Mapping[str, Any]]] = defaultdict(list)
        for row in self.codes:
            if row["dataset"] in last and row["n_epoch"] == last[row["dataset"]]:
                groups[row["dataset"], row["category"]].append(row)
        place = [None, *reversed(MEANINGS)]
        rows = []
        for (dataset, category), group in sorted(
            groups.items(), key=lambda one: (one[0][0], place.index(one[0][1]))
        ):
            texts = [f"{row['error_code']} {row['counts']}" for row in group[:MAX_CODES]]
            if len(group) > MAX_CODES:
                texts.append(f"and {len(group) - MAX_CODES} more codes")
            total = sum(row["counts"] for row in group)
            rows.append(
                [dataset, "all errors" if category is None else category, f"{total}", ", ".join(texts)]
            )
        return Cells(["dataset", "category", "counts", "codes"], rows)

    def _turned(self, table: Rows, names: Sequence[str]) -> Cells:
        """Metrics as rows, the last datasets as columns."""
        last = table[-MAX_COLUMNS:]
        titles = [
            f"{row['dataset']} {_cell(row['n_epoch'])}" if self.epochs else str(row["dataset"])
            for row in last
        ]
        rows = [[name.removesuffix("_ratio"), *(_cell(row[name]) for row in last)] for name in names]
        return Cells(["", *titles], rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="bold")
        yield Text(self.subtitle, style="dim")
        for title, cells in self.tables():
            yield Text(f"\n{title}", style="cyan")
            yield _table(cells) if cells.rows else Text("none", style="dim")
        for note in self.notes():
            yield Text(note, style="dim")
        found = self.problems()
        if found:
            yield Text("\nAbout the records", style="cyan")
        for severity, message in found:
            mark = "warning: " if severity == "warning" else "note: "
            yield Text(mark + message, style="yellow" if severity == "warning" else "")

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=100, no_color=True, force_terminal=False).print(self)
        return text.getvalue()

    def _repr_html_(self) -> str:
        parts = [f"<h3>{html.escape(self.title)}</h3><p>{html.escape(self.subtitle)}</p>"]
        for title, cells in self.tables():
            parts.append(f"<h4>{html.escape(title)}</h4>{_html(cells)}")
        parts += [f"<p><em>{html.escape(note)}</em></p>" for note in self.notes()]
        items = [
            f"<li><b>{severity}</b>: {html.escape(message)}</li>" for severity, message in self.problems()
        ]
        if items:
            parts.append(f"<h4>About the records</h4><ul>{''.join(items)}</ul>")
        return "".join(parts)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _cell(value: Any) -> str:
    if _missing(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
    return str(value)


def _table(cells: Cells) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(cells.columns):
        text = name in {"", "dataset", "category", "codes", "means", "code", "action"}
        table.add_column(
            name,
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=place == 0 or name == "severity",
        )
    for row in cells.rows:
        table.add_row(*(Text(value) for value in row))
    return table


def _html(cells: Cells) -> str:
    """A table that a notebook draws as it does a frame's."""
    import pandas as pd

    return str(pd.DataFrame(cells.rows, columns=cells.columns).to_html(index=False, border=0))
