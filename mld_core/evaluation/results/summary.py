"""How a result looks: in a terminal (rich, 80 columns are enough), in a notebook (HTML), as plain text."""

from __future__ import annotations

import html
import io
import shutil
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import pandas as pd
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from mld_core.evaluation.codes.categories import MEANINGS
from mld_core.evaluation.codes.diagnosis import Diagnosis, shown
from mld_core.evaluation.results.tables import METRIC_COLUMNS, RATIO_COLUMNS

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


class Figures(pd.DataFrame):
    """A table that prints with three decimals and all its columns; what is taken from it is a plain frame.

    Columns that do not stand side by side in the terminal (80 characters where there is none) become rows.
    """

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def __repr__(self) -> str:
        width = shutil.get_terminal_size((pd.get_option("display.width") or 80, 24)).columns
        cells = self._cells()
        wide = str(cells.to_string(index=False))
        if not len(cells) or len(wide.partition("\n")[0]) <= width:
            return wide
        keys = ["dataset", "n_epoch"] if cells["dataset"].duplicated().any() else ["dataset"]
        titles = [" ".join(row) for row in cells[keys].itertuples(index=False)]
        turned = cells.drop(columns=keys).T.set_axis(titles, axis="columns")
        turned.columns.name = " ".join(keys)
        return str(turned.to_string(line_width=width))

    def _cells(self) -> pd.DataFrame:
        return pd.DataFrame({name: [_three_decimals(value) for value in self[name]] for name in self})

    def _repr_html_(self) -> str:
        return str(self._cells().to_html(index=False))


def _three_decimals(value: Any) -> str:
    """A cell as text; lists as they are.

    Example:
        >>> _three_decimals(12875.5), _three_decimals(5000), _three_decimals(None)
        ('12875.500', '5000', '-')
    """
    if isinstance(value, list | np.ndarray):
        return str(value)
    if pd.isna(value):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


class Summary:
    """The summary of a result; print it with rich, show it in a notebook, or `str()` it."""

    def __init__(
        self,
        info: Mapping[str, Any],
        metrics: pd.DataFrame,
        categories: pd.DataFrame,
        codes: pd.DataFrame,
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
        return bool(self.categories[list(RATIO_COLUMNS)].notna().to_numpy().any())

    def problems(self) -> list[tuple[str, str]]:
        """(severity, sentence) of everything that is wrong with the records, warnings first."""
        found = [(str(one["severity"]), str(one["message"])) for one in self.info["problems"]]
        return sorted(found, key=lambda one: one[0] != "warning")

    def tables(self) -> list[tuple[str, pd.DataFrame]]:
        """Title and cells (texts) of each table, metrics as rows and datasets as columns."""
        made = [self._figures()]
        last = " of the last epoch" if self.metrics["dataset"].duplicated().any() else ""
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

    def _figures(self) -> tuple[str, pd.DataFrame]:
        """The metrics; of detections what counts are of, and the profile's own."""
        if "n_gt" not in self.metrics:
            return "Metrics (entropies: sums in nats)", _turned(self.metrics, _METRICS)
        profile = next((str(one) for one in self.metrics["profile"].dropna()), "")
        costs = "; dap: what an error type costs in AP50" if profile == "coco" else ""
        title = f"Metrics (counts: frames; auprc: mAP, profile {profile}{costs})"
        return title, _turned(self.metrics, (*_BOX_METRICS, *_MORE.get(profile, ())))

    def _meant(self) -> pd.DataFrame:
        """The shares, and what each category means."""
        turned = _turned(self.categories, RATIO_COLUMNS)
        return turned.assign(means=[MEANINGS[name] for name in turned[""]])

    def actions(self) -> pd.DataFrame:
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
                text = {"code": f"{code} {known[code].title}", "severity": f"{severity}"}
                rows.append({"dataset": dataset, **text, "counts": f"{counts[code]}", "action": action})
        return pd.DataFrame(rows, columns=["dataset", "code", "severity", "counts", "action"])

    def _codes(self) -> pd.DataFrame:
        """The commonest codes of each category; right units stand there only if there are categories."""
        rows = []
        last = self.metrics.drop_duplicates("dataset", keep="last")[["dataset", "n_epoch"]]
        codes = last.merge(self.codes, on=["dataset", "n_epoch"])
        place = {name: number for number, name in enumerate(reversed(MEANINGS))}
        order = codes["category"].map(place).fillna(-1)
        codes = codes.assign(order_=order).sort_values(["dataset", "order_"], kind="stable")
        keys = ["dataset", "category"]
        for key, group in codes.groupby(keys, dropna=False, sort=False):
            dataset, category = cast("tuple[str, str | None]", key)
            total = int(group["counts"].sum())
            top = group.head(MAX_CODES)
            texts = [f"{code} {count}" for code, count in zip(top["error_code"], top["counts"], strict=True)]
            if len(group) > MAX_CODES:
                texts.append(f"and {len(group) - MAX_CODES} more codes")
            named = "all errors" if pd.isna(category) else str(category)
            rows.append(
                {"dataset": str(dataset), "category": named, "counts": f"{total}", "codes": ", ".join(texts)}
            )
        return pd.DataFrame(rows, columns=["dataset", "category", "counts", "codes"])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="bold")
        yield Text(self.subtitle, style="dim")
        for title, cells in self.tables():
            yield Text(f"\n{title}", style="cyan")
            yield _table(cells) if len(cells) else Text("none", style="dim")
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
            parts.append(f"<h4>{html.escape(title)}</h4>{cells.to_html(index=False, border=0)}")
        parts += [f"<p><em>{html.escape(note)}</em></p>" for note in self.notes()]
        items = [
            f"<li><b>{severity}</b>: {html.escape(message)}</li>" for severity, message in self.problems()
        ]
        if items:
            parts.append(f"<h4>About the records</h4><ul>{''.join(items)}</ul>")
        return "".join(parts)


def _turned(frame: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Metrics as rows, the last datasets as columns; cells as texts."""
    shown = frame.tail(MAX_COLUMNS)
    several = frame["dataset"].duplicated().any()
    cells: dict[str, list[str]] = {"": [name.removesuffix("_ratio") for name in names]}
    for row in shown.to_dict("records"):
        epoch = "-" if pd.isna(row["n_epoch"]) else row["n_epoch"]
        title = f"{row['dataset']} {epoch}" if several else str(row["dataset"])
        cells[title] = [_cell(row[name]) for name in names]
    return pd.DataFrame(cells)


def _cell(value: Any) -> str:
    if value is None or pd.isna(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
    return str(value)


def _table(cells: pd.DataFrame) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(cells.columns):
        text = name in {"", "dataset", "category", "codes", "means", "code", "action"}
        table.add_column(
            str(name),
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=place == 0 or name == "severity",
        )
    for row in cells.itertuples(index=False):
        table.add_row(*(Text(str(value)) for value in row))
    return table
