"""Answers as columns of the unit table, for any task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.analysis.answers import SplitAnalysis, UnitAnswers
from mld_core.evaluation.analysis.stages import Split
from mld_core.evaluation.analysis.units import FLAGS, Column
from mld_core.evaluation.codes.categories import CATEGORIES, Flags
from mld_core.evaluation.codes.diagnosis import LOOK_FIRST, Diagnoses, gravest_first

_ROWS = 65_536


def category_names(category: NDArray[np.integer]) -> pa.Array:
    """Names of (N,) category numbers, null for -1.

    Example:
        >>> category_names(np.array([2, -1])).to_pylist()
        ['hotspot', None]
    """
    return named(CATEGORIES, category)


def named(names: Sequence[str], number: NDArray[np.integer]) -> pa.Array:
    """The names of (N,) numbers, null for -1."""
    return pa.array(list(names), pa.string()).take(pa.array(number, pa.int64(), mask=number < 0))


def coordinates(points: NDArray[np.float32]) -> dict[str, Column]:
    """The first two PCA coordinates, for maps; a space of one axis has no second."""
    return {f"pca_{axis + 1}": points[:, axis] for axis in range(min(2, points.shape[1]))}


def flag_structs(flags: Flags) -> pa.StructArray:
    """The six booleans of every unit as structs."""
    return pa.StructArray.from_arrays([pa.array(value) for value in vars(flags).values()], fields=list(FLAGS))


def answer_columns(answers: UnitAnswers, split: Split | None) -> dict[str, Column]:
    """(N,) columns that every task has; `split` is the one the neighbours, if any, are units of."""
    made: dict[str, Column] = {
        "error_proba": answers.error_proba,
        "local_error_rate": answers.density.rate,
        "local_error_lo": answers.density.low,
        "baseline_risk": answers.baseline_risk,
        "predicted_risk_lo": answers.risk_low,
        "flags": flag_structs(answers.flags),
        **coordinates(answers.points),
    }
    if answers.neighbours is not None and split is not None:
        made["neighbour_ids"] = neighbour_ids(answers.neighbours, split)
    if isinstance(answers, SplitAnalysis):
        made |= judged_columns(answers)
    return made


def judged_columns(answers: Any) -> dict[str, Column]:
    """(N,) columns of a split in which units are labelled: of a `SplitAnalysis`, or what has its names."""
    return {
        "category": category_names(answers.category),
        "projected_category": category_names(np.where(answers.errors < 0, answers.projected, -1)),
        "membership": answers.membership,
        "ambiguity": answers.ambiguity,
        "label_quality": answers.label_quality,
        "region_id": pa.array(answers.region, pa.int32(), mask=answers.region < 0),
    }


def diagnosis_columns(found: Diagnoses) -> dict[str, Column]:
    """What the diagnoses say of every unit: the gravest code, all codes, severity and what to do."""
    return {
        "primary_code": named([one.code for one in found.registry], found.primary),
        "diagnosis": diagnosis_lists(found),
        "severity": pa.array(found.severity, pa.int8(), mask=found.severity == 0),
        "recommended_action": recommended_actions(found),
        **({"code_membership": found.membership} if len(found.membership) else {}),
    }


def recommended_actions(found: Diagnoses) -> pa.Array:
    """What the primary code advises, or only to look where it would not be sure to repeat on other data."""
    nominal = np.array([one.severity for one in found.registry] + [0])[found.primary]
    advice = [one.action for one in found.registry]
    return named([*advice, LOOK_FIRST], np.where(found.severity < nominal, len(advice), found.primary))


def diagnosis_lists(found: Diagnoses) -> pa.ListArray:
    """The codes of every unit, primary first; an empty list where none applies."""
    names = [one.code for one in gravest_first(found.registry) if one.code in found.masks]
    counts = np.zeros(len(found.primary) + 1, np.int64)
    hits = [np.flatnonzero(found.masks[name]) for name in names]
    for hit in hits:
        counts[hit + 1] += 1
    offsets = np.cumsum(counts)
    where = offsets[:-1].copy()
    values = np.empty(int(offsets[-1]), np.int64)
    for place, hit in enumerate(hits):
        values[where[hit]] = place
        where[hit] += 1
    codes = pa.array(names, pa.string()).take(pa.array(values))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), codes)


def neighbour_ids(neighbours: NDArray[np.int64], split: Split) -> pa.ChunkedArray:
    """Input ids of (N, k) rows of `split`, nearest first, -1 left out."""
    ids = pq.read_table(split.units, columns=["input_id"]).column("input_id").combine_chunks()
    chunks: list[Any] = []
    for start in range(0, len(neighbours), _ROWS):
        block = neighbours[start : start + _ROWS]
        known = block >= 0
        offsets = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
        values = ids.take(pa.array(block[known]))
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        chunks.append(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values))
    return pa.chunked_array(chunks, pa.list_(pa.string()))
