"""Hugging Face Datasets: one Parquet file, whose schema says which features it holds.

    datasets.Dataset.from_parquet("val.parquet")

Columns: `input_id`, `media_path`, `label` and `prediction` (ClassLabel), `probabilities`, and what the last
evaluation found; null where nothing was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.exchange.samples import FINDINGS, Samples

_KINDS = {
    "category": pa.string(),
    "diagnosis": pa.list_(pa.string()),
    "severity": pa.int64(),
    "error_proba": pa.float64(),
    "label_quality": pa.float64(),
    "suggested_label": pa.int64(),
}


def write_hf_dataset(samples: Samples, class_names: list[str], folder: Path) -> None:
    """Write the file of one pass."""
    width = samples.probabilities.shape[1]
    found = [samples.findings.get(name, {}) for name in samples.input_id]
    columns: dict[str, pa.Array] = {
        "input_id": pa.array(samples.input_id, pa.string()),
        "media_path": pa.array(samples.media, pa.string()),
        "label": _classes(samples.label.tolist()),
        "prediction": _classes(samples.prediction.tolist()),
        "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(samples.probabilities.ravel()), width),
        **{name: pa.array([one.get(name) for one in found], _KINDS[name]) for name in FINDINGS},
    }
    label = {"names": class_names, "_type": "ClassLabel"}
    features: dict[str, Any] = {name: _feature(column.type) for name, column in columns.items()}
    features |= dict.fromkeys(("label", "prediction", "suggested_label"), label)
    said = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(columns).replace_schema_metadata(said)
    pq.write_table(table, folder / f"{samples.dataset_type}.parquet")


def _classes(numbers: list[int]) -> pa.Array:
    return pa.array([None if number < 0 else number for number in numbers], pa.int64())


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """A type as Datasets writes it down."""
    if pa.types.is_fixed_size_list(kind):
        inner = {"dtype": "float32", "_type": "Value"}
        return {"feature": inner, "length": kind.list_size, "_type": "List"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}
