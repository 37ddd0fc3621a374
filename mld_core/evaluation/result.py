"""What an evaluation found: tables on disk, read on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console, ConsoleOptions, RenderResult

from mld_core.evaluation.compare import Comparison, Side, compare_sides
from mld_core.evaluation.database import database, fetch, to_frame
from mld_core.evaluation.errors import FilterError, NotFoundError, known, near
from mld_core.evaluation.expression import find_column, quoted
from mld_core.evaluation.result_store import ResultStore
from mld_core.evaluation.summary import Summary, show
from mld_core.evaluation.view import ALIASES, view

__all__ = ["CATEGORIES", "CATEGORY_COLUMNS", "METRIC_COLUMNS", "Comparison", "Result"]

METRIC_COLUMNS = (
    *("dataset", "counts", "accuracy", "auroc", "auprc", "net_entropy_loss", "net_entropy"),
    *("error_proba_auroc", "error_proba_auprc"),
)
"""The columns of `metrics_summary()`, in their order."""

CATEGORIES = (
    *("stable_coverage", "operational_coverage", "hotspot"),
    *("recessive_hotspot", "critical_hotspot", "aleatoric_hotspot"),
)
CATEGORY_COLUMNS = ("dataset", *(f"{name}_ratio" for name in CATEGORIES))
"""The columns of `issue_category_summary()`, in their order."""

_ISSUE_ORDER = ("-severity", "-error_proba", "-loss", "dataset", "n_epoch", "unit_id")


class Result:
    """One evaluation result. It is stored once and never changes; every method reads it from disk.

    Attributes:
        result_name: Its name within the run.
        info: The whole `result.json`: what was asked, which records were read, what is wrong with them.
        folder: Where its tables lie (Parquet).
    """

    def __init__(self, store: ResultStore, result_name: str) -> None:
        self._store = store
        self.folder, self.info = store.load(result_name)
        self.result_name = str(self.info["result_name"])

    # -- what it is ----------------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """Name of the evaluated model."""
        return str(self.info["model_name"])

    @property
    def version_name(self) -> str:
        """Name of the evaluated version."""
        return str(self.info["version_name"])

    @property
    def method_name(self) -> str:
        """The evaluation method, e.g. `classification_v1`."""
        return str(self.info["method_name"])

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes by index, where the run has them."""
        names = self.info.get("class_names")
        return [str(name) for name in names] if names else None

    @property
    def problems(self) -> list[dict[str, Any]]:
        """What is wrong with the records.

        Each has `kind`, `severity` ("warning" or "note"), `dataset`, `n_epoch` and `message`.
        """
        return list(self.info["problems"])

    @property
    def datasets(self) -> list[str]:
        """The evaluated splits, in the order of the tables."""
        return list(dict.fromkeys(str(one["dataset"]) for one in self.info["passes"]))

    def __repr__(self) -> str:
        run = f"{self.model_name!r} {self.version_name!r}"
        return f"Result({self.result_name!r}, {run}, datasets={self.datasets})"

    # -- tables --------------------------------------------------------------------------------------------

    def metrics_summary(self, *, full: bool = False) -> pd.DataFrame:
        """One row for each dataset (and epoch, where the result holds several).

        `net_entropy_loss` (cross-entropy) and `net_entropy` are sums over the counted units, in nats; a
        metric that has no value is null.

        Args:
            full: Add the further columns: means, label and error counts, what was dropped when the records
                were read, whether the pass is partial, the run's names.
        """
        return self._summary("metrics", METRIC_COLUMNS, full=full)

    def issue_category_summary(self, *, full: bool = False) -> pd.DataFrame:
        """Share of each issue category in each dataset; the six ratios sum to 1, and are null until computed.

        Args:
            full: Add the further columns: the overlapping reading, thresholds, expected risk of the coverage.
        """
        return self._summary("categories", CATEGORY_COLUMNS, full=full)

    def class_summary(self, dataset_type: str | None = None) -> pd.DataFrame:
        """One row for each class: counts, accuracy (its recall), precision, one-vs-rest AUROC and AUPRC."""
        return self._named(self._of_dataset("classes", dataset_type), {"class": "class_name"})

    def confusion(self, dataset_type: str | None = None) -> pd.DataFrame:
        """Counts of each (gt, prediction) that occurs; the prediction of non-finite logits is null."""
        return self._named(
            self._of_dataset("confusion", dataset_type), {"gt": "gt_name", "prediction": "prediction_name"}
        )

    def get_issues(
        self,
        dataset_type: str | None = None,
        category: str | None = None,
        code: str | None = None,
        min_severity: int | None = None,
        order_by: str | Sequence[str] | None = None,
        limit: int | None = None,
    ) -> pd.DataFrame:
        """The units with an issue, worst first.

        With no argument: every unit that has an error or a diagnosis of severity 2 or more. `category`,
        `code` and `min_severity` choose among all units.

        Args:
            dataset_type: Only this split.
            category: Only this issue category, e.g. "critical_hotspot".
            code: Only units with this error code (`CLS3->7`) or diagnosis (`C01`).
            min_severity: Only units whose most severe diagnosis is at least this (1 to 5).
            order_by: Columns to sort by, `-` before a name for descending; default severity, error
                probability and loss, each descending.
            limit: At most so many rows.

        Raises:
            FilterError: An unknown column in `order_by`.
            NotFoundError: A split the result does not hold.
        """
        tests, values = ["is_error OR severity >= 2"], []
        if not (category is None and code is None and min_severity is None):
            tests = []
        if dataset_type is not None:
            tests.append("dataset = ?")
            values.append(self._check_dataset(dataset_type))
        if category is not None:
            if category not in CATEGORIES:
                raise FilterError(
                    f"category={category!r}{near(category, CATEGORIES)} (categories: {known(CATEGORIES)})"
                )
            tests.append("category = ?")
            values.append(category)
        if code is not None:
            tests.append("(error_code = ? OR list_contains(diagnosis, ?))")
            values += [code, code]
        parameters: list[object] = list(values)
        if min_severity is not None:
            tests.append("severity >= ?")
            parameters.append(int(min_severity))
        where = " AND ".join(f"({test})" for test in tests)
        sql = f"SELECT * FROM units WHERE {where} ORDER BY {self._order(order_by)}"  # noqa: S608
        if limit is not None:
            sql += " LIMIT ?"
            parameters.append(int(limit))
        with database(self._store.spill, units=self._unit_files()) as connection:
            frame = fetch(connection, sql, parameters)
        return self._named(frame, {"gt": "gt_name", "prediction": "prediction_name"})

    def get_view(
        self,
        groupby: str | Sequence[str] | None = None,
        adjustby: str | None = None,
        filter: str | None = None,  # noqa: A002  the public name
        metrics: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Group, standardise and filter the units; one block of rows for each dataset.

        Args:
            groupby: One to three columns of the unit table (`columns()` lists them): class, predicted_class,
                category, error_code, diagnosis, any field you recorded. Float columns are cut into 10 bins of
                equal mass, `"confidence:5"` asks for 5.
            adjustby: A column to standardise by: `<metric>_adj` is what the group would show at the block's
                mix of that column (direct standardisation).
            filter: E.g. `"confidence > 0.9 and gt in (3, 5) and not is_error = false"`.
            metrics: Further columns: accuracy, net_entropy(_loss)(_mean), confidence, count_labeled,
                count_nonfinite, count_distinct_input, mean_<numeric column>, error_proba_auroc,
                error_proba_auprc.

        Returns:
            dataset, the keys, counts, share, errors, error_rate with its 95 % Jeffreys interval, lift (error
            rate over that of the block), error_proba (mean), the metrics, and up to 16 `sample_ids` (input
            ids).

        Raises:
            FilterError: A name or an expression that is not understood; the message says what is possible.
        """
        with database(self._store.spill, units=self._unit_files()) as connection:
            return view(
                connection,
                self._schema(),
                groupby=groupby,
                adjustby=adjustby,
                condition=filter,
                metrics=metrics,
            )

    def columns(self) -> dict[str, str]:
        """Name and Arrow type of every column that `get_view` and its filter may use."""
        return {field.name: str(field.type) for field in self._schema()}

    def compare(self, other: Result, dataset_type: str | None = None) -> Comparison:
        """Compare this result (before) with another (after); see `Comparison`.

        Args:
            other: A result of any model or version.
            dataset_type: Only this split; default all of both.
        """
        return compare_sides(self._side(dataset_type), other._side(dataset_type), self._store.spill)

    # -- display -------------------------------------------------------------------------------------------

    def summary(self) -> Summary:
        """The summary as an object: it renders in a terminal (rich), in a notebook (HTML) and as text."""
        with database(self._store.spill, units=self._unit_files()) as connection:
            codes = fetch(
                connection,
                "SELECT dataset, n_epoch, category, error_code, count(*) AS counts FROM units WHERE "
                "error_code IS NOT NULL "
                "AND (is_error OR category IS NOT NULL) GROUP BY ALL ORDER BY dataset, category, counts "
                "DESC, error_code",
            )
        return Summary(
            self.info, self.metrics_summary(full=True), self.issue_category_summary(full=True), codes
        )

    def get_summary(self) -> None:
        """Display metrics, categories and error codes: a table in a terminal, HTML in a notebook."""
        show(self.summary())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.summary()

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    # -- reading -------------------------------------------------------------------------------------------

    def _summary(self, table: str, first: tuple[str, ...], *, full: bool) -> pd.DataFrame:
        frame = self._read(table)
        if full:
            return frame
        keys = ["n_epoch"] if frame["dataset"].duplicated().any() else []
        return frame[[*first, *keys]]

    def _read(self, table: str) -> pd.DataFrame:
        return to_frame(pq.read_table(self.folder / f"{table}.parquet"))

    def _of_dataset(self, table: str, dataset_type: str | None) -> pd.DataFrame:
        frame = self._read(table)
        if dataset_type is not None:
            frame = frame[frame["dataset"] == self._check_dataset(dataset_type)].reset_index(drop=True)
        return frame

    def _check_dataset(self, dataset_type: str) -> str:
        if dataset_type not in self.datasets:
            raise NotFoundError(
                f"result {self.result_name!r} holds no dataset "
                f"{dataset_type!r}{near(dataset_type, self.datasets)} "
                f"(datasets: {known(self.datasets)})"
            )
        return dataset_type

    def _unit_files(self) -> list[Path]:
        return [self.folder / str(one["units"]) for one in self.info["passes"]]

    def _schema(self) -> pa.Schema:
        fields: dict[str, pa.Field] = {}
        for path in self._unit_files():
            for field in pq.read_schema(path):
                fields.setdefault(field.name, field)
        return pa.schema(list(fields.values()))

    def _order(self, order_by: str | Sequence[str] | None) -> str:
        names = [order_by] if isinstance(order_by, str) else list(order_by or _ISSUE_ORDER)
        schema = self._schema()
        parts = []
        for name in names:
            column = find_column(name.removeprefix("-"), schema, ALIASES)
            parts.append(f"{quoted(column)} {'DESC' if name.startswith('-') else 'ASC'} NULLS LAST")
        return ", ".join(parts)

    def _named(self, frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
        """Put the class name beside each class column, where the run has names."""
        names = self.class_names
        if names is None:
            return frame
        for column, label in columns.items():
            values = [
                names[int(value)] if not pd.isna(value) and 0 <= int(value) < len(names) else None
                for value in frame[column]
            ]
            frame.insert(
                list(frame.columns).index(column) + 1, label, pd.Series(values, frame.index, dtype="object")
            )
        return frame

    def _side(self, dataset_type: str | None) -> Side:
        """This result for a comparison: the last epoch of each dataset."""
        rows = pq.read_table(self.folder / "metrics.parquet").to_pylist()
        metrics = {str(row["dataset"]): row for row in rows}
        units = {str(one["dataset"]): self.folder / str(one["units"]) for one in self.info["passes"]}
        if dataset_type is not None:
            metrics = {name: row for name, row in metrics.items() if name == dataset_type}
            units = {name: path for name, path in units.items() if name == dataset_type}
        return Side(self.result_name, metrics, units)
