"""What an evaluation found: tables on disk, read on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, overload

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console, ConsoleOptions, RenderResult

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.codes.diagnosis import Diagnosis
from mld_core.evaluation.errors import FilterError, NotFoundError, known, near
from mld_core.evaluation.results.compare import KEYS, TRUTH_KEYS, Comparison, Side, compare_sides, side_of
from mld_core.evaluation.results.database import unit_fields, units_database
from mld_core.evaluation.results.expression import find_column, quoted
from mld_core.evaluation.results.frames import Figures, fetch, to_frame
from mld_core.evaluation.results.heatmap import heatmap
from mld_core.evaluation.results.many import Comparisons, compare_many
from mld_core.evaluation.results.notebook import show_page, show_summary
from mld_core.evaluation.results.store import ResultStore
from mld_core.evaluation.results.summary import Summary, read_summary, unit_files
from mld_core.evaluation.results.tables import CATEGORY_COLUMNS, METRIC_COLUMNS
from mld_core.evaluation.results.view import ALIASES, view
from mld_core.records.format.layout import Store

__all__ = ["Comparison", "Comparisons", "Result"]

_ISSUE_ORDER = ("-severity", "-error_proba", "-loss", "dataset", "n_epoch", "unit_id")

PageWriter = Callable[["Result", str | Path, Callable[[str, str], Any] | None], Path]
"""What writes the page of a result: (result, path, image_fn) -> the file's absolute path."""


class Result:
    """One evaluation result. It is stored once and never changes; every method reads it from disk.

    Attributes:
        result_name: Its name within the run.
        info: The whole `result.json`: what was asked, which records were read, what is wrong with them.
        folder: Where its tables lie (Parquet).
    """

    def __init__(
        self,
        store: ResultStore,
        result_name: str,
        *,
        diagnoses: Mapping[str, Diagnosis[Any]],
        page: PageWriter | None = None,
    ) -> None:
        self._store = store
        self._diagnoses = diagnoses
        self._page = page
        self.folder, self.info = store.load(result_name)
        self.result_name = str(self.info["result_name"])

    # -- what it is ----------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The store the result and its records lie in."""
        return self._store.store

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
    def task(self) -> str:
        """What was evaluated: "classification", "detection" or "detection3d"."""
        return str(self.info.get("task", "classification"))

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
        cursor: int = 0,
    ) -> pd.DataFrame:
        """The units with an issue, worst first: one row each, a sample or (of detections) a box.

        With no argument: every unit that is wrong or has a diagnosis of severity 2 or more, so also right
        units that deserve a look. `category`, `code` and `min_severity` choose among all units.

        Args:
            dataset_type: Only this split.
            category: Only this issue category, e.g. "critical_hotspot".
            code: Only units with this error code (`CLS3->7`) or diagnosis (`C01`).
            min_severity: Only units whose most severe diagnosis is at least this (1 to 5).
            order_by: Columns to sort by, `-` before a name for descending; default severity, error
                probability and loss, each descending.
            limit: At most so many rows.
            cursor: Where to go on: `attrs["cursor"]` of the frame before, which is None on the last page.

        Raises:
            FilterError: An unknown column in `order_by`, a negative `cursor`.
            NotFoundError: A split the result does not hold.
        """
        if category is not None and category not in CATEGORIES:
            raise FilterError(
                f"category={category!r}{near(category, CATEGORIES)} (categories: {known(CATEGORIES)})"
            )
        if cursor < 0:
            raise FilterError(f"cursor={cursor}: expected the `attrs['cursor']` of an earlier page, or 0")
        dataset = None if dataset_type is None else self._check_dataset(dataset_type)
        wanted: list[tuple[str, list[object]]] = [
            ("dataset = ?", [dataset]),
            ("category = ?", [category]),
            ("(error_code = ? OR list_contains(diagnosis, ?))", [code, code]),
            ("severity >= ?", [min_severity]),
        ]
        asked = [(test, values) for test, values in wanted if values[0] is not None]
        if category is None and code is None and min_severity is None:
            asked.append(("(is_error OR severity >= 2)", []))
        where = " AND ".join(test for test, _ in asked)
        sql = f"SELECT * FROM units WHERE {where} ORDER BY {self._order(order_by)}"  # noqa: S608
        parameters = [value for _, values in asked for value in values]
        if limit is not None:
            sql += " LIMIT ?"
            parameters.append(int(limit) + 1)  # one more tells whether there is a next page
        sql += " OFFSET ?"  # DuckDB before 1.3 counts the parameter of LIMIT first, wherever it stands
        parameters.append(int(cursor))
        with self._units() as connection:
            frame = fetch(connection, sql, parameters)
        more = limit is not None and len(frame) > limit
        frame = self._named(
            frame.head(limit) if limit is not None else frame,
            {"gt": "gt_name", "prediction": "prediction_name"},
        )
        frame.attrs["cursor"] = cursor + len(frame) if more else None
        return frame

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
        with self._units() as connection:
            return view(connection, self._schema(), groupby, adjustby, filter, metrics)

    def heatmap(
        self,
        x: str,
        y: str,
        value: str = "error_rate",
        *,
        filter: str | None = None,  # noqa: A002  as in get_view
    ) -> pd.DataFrame:
        """A rectangular grid over two columns, for plotting; one block of rows for each dataset.

        Useful pairs: `("category", "class")`, `("class", "prediction", "share")` (confusion, each class
        summing to 1), `("pca_1", "pca_2")` (map of the feature space, 64 x 64), `("n_epoch", "category",
        "share")`.

        Args:
            x: A column (`columns()` lists them); floats are cut into 64 bins of equal width,
                `"confidence:10"` asks for 10. What lies beyond their 0.5 % and 99.5 % quantiles joins the
                outer bins.
            y: Another column.
            value: "error_rate", "counts", "share" (of the units of one x) or a numeric column, whose mean is
                taken.
            filter: As in `get_view`.

        Returns:
            dataset, x, y (the bin's centre where binned), counts, n (units with a value), errors, raw (the
            cell's own value), value (shrunk to the overall one, (m overall + sum) / (m + n), with the m the
            error density chose, at most 1,024), value_lo and value_hi (95 % interval of raw), bh_sig (cell
            above the overall error rate, for other columns different from the overall mean, after
            Benjamini-Hochberg). Every combination of x and y has a row; an empty one has no raw.

        Raises:
            FilterError: A name or filter that is not understood, or more than a million cells.
        """
        table = pq.read_table(self.folder / "categories.parquet", columns=["dataset", "n_epoch", "m"])
        weights = {(str(row["dataset"]), row["n_epoch"]): float(row["m"] or 0.0) for row in table.to_pylist()}
        weights |= {(dataset, None): m for (dataset, _), m in weights.items()}
        with self._units() as connection:
            return heatmap(connection, self._schema(), x, y, value, filter, weights)

    def regions(self, dataset_type: str | None = None) -> pd.DataFrame:
        """Connected regions of the feature space where errors are dense, those with most errors first.

        Returns:
            dataset, n_epoch, region_id (that of the units), n, errors, rate, rate_lo (its 5 % quantile),
            p_value (against the split's error rate), bh_sig, label ("truth->prediction @ the metadata that
            differs most"), top_classes, top_codes, and the unit nearest to the middle.
        """
        return self._of_dataset("regions", dataset_type)

    def frames(self, dataset_type: str | None = None) -> pd.DataFrame:
        """Detection: one row for each image or frame.

        Returns:
            dataset, n_epoch, input_id, labelled, n_gt, n_pred (boxes at the operating threshold), n_tp, n_fp,
            n_fn, frame_error_proba (that the frame holds an error) and the mean and largest error_proba,
            det_error_proba and cls_error_proba of its boxes.

        Raises:
            NotFoundError: The result is of a classification.
        """
        if self.task == "classification":
            raise NotFoundError("a classification has no frames; get_issues() lists its units")
        return self._of_dataset("frames", dataset_type)

    def slices(self, dataset_type: str | None = None) -> pd.DataFrame:
        """The metadata slices behind code C32: conditions on your own columns under which more fails.

        Returns:
            dataset, n_epoch, slice, n, errors, rate, score (SliceLine), p_value, bh_sig; at most ten for each
            split, best score first.
        """
        return self._of_dataset("slices", dataset_type)

    def columns(self) -> dict[str, str]:
        """Name and Arrow type of every column that `get_view` and its filter may use."""
        return {field.name: str(field.type) for field in self._schema()}

    @overload
    def compare(self, other: Result, dataset_type: str | None = None) -> Comparison: ...

    @overload
    def compare(self, other: Sequence[Result], dataset_type: str | None = None) -> Comparisons: ...

    def compare(
        self, other: Result | Sequence[Result], dataset_type: str | None = None
    ) -> Comparison | Comparisons:
        """Compare this result (before) with another (after), or with up to ten others; see `Comparison`.

        Args:
            other: A result of any model or version; of a list of them, each is compared with this one, and
                `Comparisons` comes back.
            dataset_type: Only this split; default all of them.

        Raises:
            NotFoundError: A split that none of the results holds.
            TaskError: Results of different tasks.
        """
        others = [other] if isinstance(other, Result) else list(other)
        if dataset_type is not None and not any(dataset_type in one.datasets for one in (self, *others)):
            self._check_dataset(dataset_type)
        sides = [one.side(dataset_type) for one in (self, *others)]
        if isinstance(other, Result):
            return compare_sides(sides[0], sides[1], self._store.spill)
        return compare_many(sides, self._store.spill)

    def report(self, path: str | Path, *, image_fn: Callable[[str, str], Any] | None = None) -> Path:
        """Write a self-contained HTML page about this result, to be read offline; returns its absolute path.

        Args:
            path: The file, e.g. "report.html"; it is replaced.
            image_fn: (dataset, input_id) -> image of that sample (array or PIL image) or None, where no
                thumbnail was recorded; of a 2D detection first of all, as up to 480 pixels are sharper. Of a
                3D detection also the points of that frame, (N, 3 to 16) floats that begin with x, y, z in
                metres in the model's frame, which records do not hold; at most 4,000 are kept.

        Raises:
            FileNotFoundError: The app's pages are not built here (`make app`), or there is no such folder.
        """
        if self._page is None:
            raise NotImplementedError("this result was opened without a page: use ml_debugger.evaluator")
        return self._page(self, path, image_fn)

    def show(self, *, height: int = 800, image_fn: Callable[[str, str], Any] | None = None) -> None:
        """Show the page: in a notebook in a frame of `height` pixels, serverless; else in the browser."""
        show_page(lambda path: self.report(path, image_fn=image_fn), height)

    # -- display -------------------------------------------------------------------------------------------

    def summary(self) -> Summary:
        """The summary as an object: it renders in a terminal (rich), in a notebook (HTML) and as text."""
        return read_summary(self._store, self.folder, self.info, self._diagnoses)

    def get_summary(self) -> None:
        """Display metrics, categories and error codes: a table in a terminal, HTML in a notebook."""
        show_summary(self.summary())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.summary()

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    # -- reading -------------------------------------------------------------------------------------------

    def _summary(self, table: str, first: tuple[str, ...], *, full: bool) -> pd.DataFrame:
        frame = self._read(table)
        keys = ["n_epoch"] if frame["dataset"].duplicated().any() else []
        return Figures(frame if full else frame[[*first, *keys]])

    def _read(self, table: str) -> pd.DataFrame:
        return to_frame(pq.read_table(self.folder / f"{table}.parquet"))

    def _of_dataset(self, table: str, dataset_type: str | None) -> pd.DataFrame:
        if not (self.folder / f"{table}.parquet").exists():
            raise NotFoundError(
                f"result {self.result_name!r} has no {table}: it was made before they existed; evaluate again"
            )
        frame = self._read(table)
        if dataset_type is not None:
            frame = frame[frame["dataset"] == self._check_dataset(dataset_type)].reset_index(drop=True)
        return frame

    def _check_dataset(self, dataset_type: str) -> str:
        if dataset_type not in self.datasets:
            there = f"{near(dataset_type, self.datasets)} (datasets: {known(self.datasets)})"
            raise NotFoundError(f"result {self.result_name!r} holds no dataset {dataset_type!r}{there}")
        return dataset_type

    def _unit_files(self) -> list[Path]:
        return unit_files(self.folder, self.info)

    def _units(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A database whose view `units` holds the units of every pass."""
        return units_database(self._store.spill, self._unit_files())

    def _schema(self) -> pa.Schema:
        fields: dict[str, pa.Field] = {}
        for path in self._unit_files():
            for field in unit_fields(path):
                fields.setdefault(field.name, field)
        return pa.schema(list(fields.values()))

    def _order(self, order_by: str | Sequence[str] | None) -> str:
        names = [order_by] if isinstance(order_by, str) else list(order_by or _ISSUE_ORDER)
        names += [name for name in _ISSUE_ORDER[3:] if name not in names]  # pages need a total order
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
        by_number = dict(enumerate(names))
        for column, label in columns.items():
            values = [None if pd.isna(value) else by_number.get(int(value)) for value in frame[column]]
            place = list(frame.columns).index(column) + 1
            frame.insert(place, label, pd.Series(values, frame.index, dtype="object"))
        return frame

    def side(self, dataset_type: str | None = None, *, place: int | None = None) -> Side:
        """This result for a comparison: see `side_of`."""
        keys = KEYS if self.task == "classification" else TRUTH_KEYS
        return side_of(self.folder, self.info, keys, dataset_type, place)
