"""The tables of a result: their schemas and how rows become them; shared by all evaluation methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.engine.passes import rows_lost

if TYPE_CHECKING:
    from mld_core.records.read.reader import PassSelection

_SPLIT_ORDER = ("train", "val", "test", "predict", "deploying")

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()


def _many(kind: pa.DataType, *names: str) -> list[pa.Field]:
    return [pa.field(name, kind) for name in names]


_KEYS = [pa.field("dataset", _TEXT), pa.field("n_epoch", pa.int32())]

METRICS_SCHEMA = pa.schema(
    [
        pa.field("dataset", _TEXT),
        pa.field("counts", _WHOLE),
        *_many(_REAL, "accuracy", "auroc", "auprc", "net_entropy_loss", "net_entropy"),
        *_many(_REAL, "error_proba_auroc", "error_proba_auprc"),
        *_many(_TEXT, "model_name", "version_name", "task"),
        *_many(pa.int32(), "n_epoch", "pass_no"),
        *_many(_WHOLE, "count_labeled", "count_error", "count_distinct_input"),
        *_many(_REAL, "error_rate", "net_entropy_loss_mean", "net_entropy_mean", "net_entropy_norm"),
        pa.field("ranking_method", _TEXT),
        *_many(_REAL, "error_proba_brier", "error_proba_ece", "aurc", "augrc"),
        pa.field("error_proba_source", _TEXT),
        *_many(_WHOLE, "count_nonfinite", "count_label_out_of_range", "count_overflow", "rows_read"),
        *_many(_WHOLE, "duplicates_dropped", "non_unique_ids", "superseded_rows", "rows_lost"),
        pa.field("partial", pa.bool_()),
        pa.field("missing_ranks", pa.list_(pa.int32())),
        pa.field("torn_parts", pa.int32()),
    ]
)
"""One row for each pass; what a stage adds under another name is appended as a float64 or string column."""

METRIC_COLUMNS = tuple(METRICS_SCHEMA.names[:9])
"""The columns of `metrics_summary()`, in their order."""

RATIO_COLUMNS = tuple(f"{name}_ratio" for name in CATEGORIES)
CATEGORY_SCHEMA = pa.schema(
    [
        pa.field("dataset", _TEXT),
        *_many(_REAL, *RATIO_COLUMNS),
        pa.field("n_epoch", pa.int32()),
        pa.field("counts", _WHOLE),
        pa.field("aleatoric_overlay_ratio", _REAL),
        *_many(_REAL, *(f"{name}_five_way" for name in RATIO_COLUMNS[:-1])),
        *_many(_REAL, "expected_risk_coverage", "t1", "t2", "m", "null_hotspot_ratio"),
        pa.field("k", pa.int32()),
        pa.field("ref_split", _TEXT),
    ]
)
CATEGORY_COLUMNS = ("dataset", *RATIO_COLUMNS)
"""The columns of `issue_category_summary()`, in their order."""

CLASS_SCHEMA = pa.schema(
    [
        *_KEYS,
        *_many(_WHOLE, "class", "counts", "count_error"),
        *_many(_REAL, "accuracy", "precision", "auroc", "auprc"),
    ]
)
REGION_SCHEMA = pa.schema(
    [
        *_KEYS,
        pa.field("region_id", pa.int32()),
        *_many(_WHOLE, "n", "errors"),
        *_many(_REAL, "rate", "rate_lo", "p_value", "membership"),
        pa.field("bh_sig", pa.bool_()),
        pa.field("label", _TEXT),
        pa.field("top_classes", pa.list_(pa.int32())),
        pa.field("top_codes", pa.list_(_TEXT)),
        *_many(_TEXT, "medoid_unit_id", "medoid_input_id"),
    ]
)
SLICE_SCHEMA = pa.schema(
    [
        *_KEYS,
        pa.field("slice", _TEXT),
        *_many(_WHOLE, "n", "errors"),
        *_many(_REAL, "rate", "score", "p_value"),
        pa.field("bh_sig", pa.bool_()),
    ]
)
CONFUSION_SCHEMA = pa.schema([*_KEYS, *_many(pa.int32(), "gt", "prediction"), pa.field("counts", _WHOLE)])


def split_order(dataset: str) -> tuple[int, str]:
    """Sort key of split names: train, val, val/1, test, predict, then the user's own by name.

    Example:
        >>> sorted(["night", "test", "val/1", "train", "val"], key=split_order)
        ['train', 'val', 'val/1', 'test', 'night']
    """
    base = dataset.partition("/")[0]
    return (_SPLIT_ORDER.index(base) if base in _SPLIT_ORDER else len(_SPLIT_ORDER), dataset)


def epoch_order(n_epoch: int | None) -> int:
    """Sort key of epochs, unknown first."""
    return -(2**31) if n_epoch is None else n_epoch


def read_facts(selection: PassSelection) -> dict[str, Any]:
    """Cells of the metrics table that say which pass it is and how its records were read."""
    report = selection.report
    return {
        "model_name": selection.run.model_name,
        "version_name": selection.run.version_name,
        "task": selection.task,
        "dataset": selection.key.dataset_type,
        "n_epoch": selection.key.n_epoch,
        "pass_no": selection.key.pass_no,
        "rows_read": report.rows_read,
        "duplicates_dropped": report.duplicates_dropped,
        "non_unique_ids": report.non_unique_ids,
        "superseded_rows": report.superseded_rows,
        "rows_lost": rows_lost(selection),
        "partial": not selection.sealed,
        "missing_ranks": list(selection.missing_ranks),
        "torn_parts": len(selection.torn),
    }


def table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows under a schema, with what they hold beyond it in further columns."""
    more = dict.fromkeys(name for row in rows for name in row if name not in schema.names)
    for name in more:
        texts = any(isinstance(row.get(name), str) for row in rows)
        schema = schema.append(pa.field(name, pa.string() if texts else pa.float64()))
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)
