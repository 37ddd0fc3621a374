"""The tables of a result: their schemas and how rows become them; shared by all evaluation methods."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from mld_core.evaluation.engine.passes import rows_lost
from mld_core.records.read.reader import PassSelection

_SPLIT_ORDER = ("train", "val", "test", "predict", "deploying")

KEY_FIELDS = [pa.field("dataset", pa.string()), pa.field("n_epoch", pa.int32())]

METRICS_SCHEMA = pa.schema(
    [
        pa.field("dataset", pa.string()),
        pa.field("counts", pa.int64()),
        *(
            pa.field(name, pa.float64())
            for name in ("accuracy", "auroc", "auprc", "net_entropy_loss", "net_entropy")
        ),
        *(pa.field(name, pa.float64()) for name in ("error_proba_auroc", "error_proba_auprc")),
        pa.field("model_name", pa.string()),
        pa.field("version_name", pa.string()),
        pa.field("task", pa.string()),
        pa.field("n_epoch", pa.int32()),
        pa.field("pass_no", pa.int32()),
        *(pa.field(name, pa.int64()) for name in ("count_labeled", "count_error", "count_distinct_input")),
        *(
            pa.field(name, pa.float64())
            for name in ("error_rate", "net_entropy_loss_mean", "net_entropy_mean")
        ),
        pa.field("net_entropy_norm", pa.float64()),
        pa.field("ranking_method", pa.string()),
        *(pa.field(f"error_proba_{name}", pa.float64()) for name in ("brier", "ece")),
        *(pa.field(name, pa.float64()) for name in ("aurc", "augrc")),
        pa.field("error_proba_source", pa.string()),
        *(
            pa.field(name, pa.int64())
            for name in ("count_nonfinite", "count_label_out_of_range", "count_overflow")
        ),
        *(pa.field(name, pa.int64()) for name in ("rows_read", "duplicates_dropped", "non_unique_ids")),
        *(pa.field(name, pa.int64()) for name in ("superseded_rows", "rows_lost")),
        pa.field("partial", pa.bool_()),
        pa.field("missing_ranks", pa.list_(pa.int32())),
        pa.field("torn_parts", pa.int32()),
    ]
)
"""One row for each pass; what a stage adds under another name is appended as a float64 or string column."""

RATIOS = ("stable_coverage", "operational_coverage", "hotspot", "recessive_hotspot", "critical_hotspot")
CATEGORY_SCHEMA = pa.schema(
    [
        pa.field("dataset", pa.string()),
        *(pa.field(f"{name}_ratio", pa.float64()) for name in (*RATIOS, "aleatoric_hotspot")),
        pa.field("n_epoch", pa.int32()),
        pa.field("counts", pa.int64()),
        pa.field("aleatoric_overlay_ratio", pa.float64()),
        *(pa.field(f"{name}_ratio_five_way", pa.float64()) for name in RATIOS),
        *(
            pa.field(name, pa.float64())
            for name in ("expected_risk_coverage", "t1", "t2", "m", "null_hotspot_ratio")
        ),
        pa.field("k", pa.int32()),
        pa.field("ref_split", pa.string()),
    ]
)
CLASS_SCHEMA = pa.schema(
    [
        *KEY_FIELDS,
        *(pa.field(name, pa.int64()) for name in ("class", "counts", "count_error")),
        *(pa.field(name, pa.float64()) for name in ("accuracy", "precision", "auroc", "auprc")),
    ]
)
REGION_SCHEMA = pa.schema(
    [
        *KEY_FIELDS,
        pa.field("region_id", pa.int32()),
        pa.field("n", pa.int64()),
        pa.field("errors", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("rate", "rate_lo", "p_value")),
        pa.field("bh_sig", pa.bool_()),
        pa.field("label", pa.string()),
        pa.field("top_classes", pa.list_(pa.int32())),
        pa.field("top_codes", pa.list_(pa.string())),
        *(pa.field(name, pa.string()) for name in ("medoid_unit_id", "medoid_input_id")),
    ]
)
SLICE_SCHEMA = pa.schema(
    [
        *KEY_FIELDS,
        pa.field("slice", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("errors", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("rate", "score", "p_value")),
        pa.field("bh_sig", pa.bool_()),
    ]
)
CONFUSION_SCHEMA = pa.schema(
    [
        *KEY_FIELDS,
        pa.field("gt", pa.int32()),
        pa.field("prediction", pa.int32()),
        pa.field("counts", pa.int64()),
    ]
)


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
