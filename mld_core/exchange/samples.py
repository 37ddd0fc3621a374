"""The samples of a recorded pass of classification, as every format of labels reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.records.read.reader import PassSelection

FINDINGS = ("category", "diagnosis", "severity", "error_proba", "label_quality", "suggested_label")
"""What an evaluation says of a sample, under the names of its table of units."""


@dataclass(frozen=True)
class Samples:
    """A pass, one entry a sample.

    Attributes:
        dataset_type: its split.
        model: `<model>/<version>`.
        input_id: N ids.
        media: N paths or addresses of pictures; the id where none was recorded.
        label: (N,), -1 for none.
        prediction: (N,), -1 for none.
        probabilities: (N, K) float32: softmax of the stored logits, or the sigmoid of each where each class
            was trained by itself; NaN where a logit is not finite.
        findings: of each id, what the last evaluation found (`FINDINGS`); empty where nothing was.
    """

    dataset_type: str
    model: str
    input_id: list[str]
    media: list[str]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    findings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def samples_of(item: PassSelection, findings: Mapping[str, Mapping[str, Any]] | None = None) -> Samples:
    """The samples of a pass in order."""
    rows = item.table("samples")
    ids = [str(one) for one in rows["input_id"].to_pylist()]
    media = rows["media_path"].to_pylist() if "media_path" in rows.column_names else [None] * len(ids)
    return Samples(
        dataset_type=item.key.dataset_type,
        model=f"{item.run.model_name}/{item.run.version_name}",
        input_id=ids,
        media=[one or name for one, name in zip(media, ids, strict=True)],
        label=_numbers(rows["label"].to_pylist()),
        prediction=_numbers(rows["prediction"].to_pylist()),
        probabilities=_probabilities(item),
        findings=findings or {},
    )


def named(number: int, class_names: Sequence[str]) -> str | None:
    """The name of a class, None of -1."""
    return class_names[number] if number >= 0 else None


def _numbers(values: list[int | None]) -> NDArray[np.int64]:
    return np.array([-1 if value is None else value for value in values], np.int64)


def _probabilities(item: PassSelection) -> NDArray[np.float32]:
    rows = item.table("vectors", ["logits"])["logits"].combine_chunks()
    width = rows.type.byte_width // 4
    logits = np.frombuffer(b"".join(rows.to_pylist()), np.float32).reshape(-1, width).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if item.sigmoid:
            return (1 / (1 + np.exp(-logits))).astype(np.float32)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: NDArray[np.float32] = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
        return found
