"""What an analysis found, as the rows, facts and notes of a result, for any task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.analysis.answers import AnalysisOptions, SplitAnalysis
from mld_core.evaluation.analysis.evidence import NEEDS
from mld_core.evaluation.analysis.stages import REFERENCE_MINIMUM, Split, Value
from mld_core.evaluation.codes.categories import CATEGORIES, Thresholds
from mld_core.evaluation.space.cells import Density
from mld_core.evaluation.space.regions import Region
from mld_core.evaluation.space.slices import MetadataSlice

_NOT_WORTH_A_NOTE = frozenset(NEEDS[name] for name in ("comparison", "train_split", "other_split", "labels"))
"""Reasons that lie in what a code is about, not in what was recorded."""


def analysis_options(options: Mapping[str, Any], **more: Any) -> AnalysisOptions:
    """The options of a request as the analysis takes them."""
    return AnalysisOptions(
        risk_tolerance=options.get("risk_tolerance"),
        salts=tuple(str(number) for number in range(int(options.get("repeats", 3)))),
        **more,
    )


def category_row(analysis: SplitAnalysis) -> dict[str, Value]:
    """Cells of the split's row in the category table."""
    row: dict[str, Value] = {
        f"{name.removeprefix('five_way_')}_five_way" if name.startswith("five_way_") else name: value
        for name, value in analysis.ratios.items()
    }
    row |= threshold_row(analysis.used, analysis.density)
    unlabelled = analysis.errors < 0
    if unlabelled.any():
        row |= projected_ratios(analysis.projected[unlabelled])
    return row


def threshold_row(used: Thresholds, density: Density) -> dict[str, Value]:
    """What the categories were decided by."""
    return {"t1": used.t1, "t2": used.t2, "k": density.k, "m": density.m, "ref_split": used.reference}


def projected_ratios(category: NDArray[np.int8]) -> dict[str, Value]:
    """Shares of the projected categories among the units without a label."""
    return projected_shares(np.array([(category == number).mean() for number in range(len(CATEGORIES))]))


def projected_shares(share: NDArray[np.floating]) -> dict[str, Value]:
    """The same from the (6,) shares."""
    return {f"projected_{name}_ratio": float(one) for name, one in zip(CATEGORIES, share, strict=True)}


def plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON holds them: no NaN, infinity as a text."""
    made: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, np.generic):
            value = value.item()  # noqa: PLW2901
        if isinstance(value, float) and not math.isfinite(value):
            value = None if math.isnan(value) else str(value)  # noqa: PLW2901
        made[name] = value
    return made


class Estimate(Protocol):
    """Where an error probability comes from; see `ErrorProbability`."""

    @property
    def source(self) -> str:
        """What it is."""
        ...

    @property
    def reason(self) -> str:
        """Why it is not the estimator's."""
        ...


def analysis_notes(split: Split, analysis: SplitAnalysis) -> list[str]:
    """What to know when reading the figures of a split."""
    absent = analysis.diagnoses.not_computable
    return notes_of(split, analysis.estimate, analysis.used, analysis.density, absent)


def notes_of(
    split: Split,
    estimate: Estimate,
    used: Thresholds,
    density: Density,
    not_computable: Mapping[str, str],
    *,
    known: tuple[str, ...] = (),
) -> list[str]:
    """The same from what it is read off; reasons in `known` are told elsewhere."""
    made = []
    if estimate.source == "constant":
        made.append(f"error_proba is the same for every unit: {estimate.reason}")
    elif estimate.source != "cse":
        made.append(f"error_proba is the calibrated risk of the softmax confidence: {estimate.reason}")
    if min(split.errors, split.labeled - split.errors) < REFERENCE_MINIMUM:
        made.append(
            f"{split.errors} wrong and {split.labeled - split.errors} right units are few: thresholds from "
            f"{used.reference!r}, read the categories with care"
        )
    if density.m == math.inf:
        made.append("errors are not clustered in the feature space: no unit can be in a hotspot by density")
    by_reason: dict[str, list[str]] = {}
    for code, reason in not_computable.items():
        text = reason.removeprefix("not computable: ")
        if not any(part in _NOT_WORTH_A_NOTE or part in known for part in text.split("; ")):
            by_reason.setdefault(text, []).append(code)
    made += [f"{', '.join(codes)} could not be computed: {reason}" for reason, codes in by_reason.items()]
    return made


def region_rows(split: Split, regions: list[Region]) -> list[dict[str, Any]]:
    """Rows of the table of regions."""
    if not regions:
        return []
    ids = pq.read_table(split.units, columns=["unit_id", "input_id"])
    return rows_of_regions(split, regions, ids.take([region.medoid for region in regions]).to_pylist())


def rows_of_regions(
    split: Split, regions: list[Region], medoids: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The same where the `unit_id` and `input_id` of their medoids are known."""
    return [
        {
            "dataset": split.dataset,
            "n_epoch": split.n_epoch,
            "region_id": region.region_id,
            "n": region.n,
            "errors": region.errors,
            "rate": region.rate,
            "rate_lo": region.rate_lo,
            "p_value": region.p_value,
            "bh_sig": region.bh_sig,
            "label": region.label,
            "membership": region.membership,
            "top_classes": region.top_classes,
            "top_codes": region.top_codes,
            "medoid_unit_id": medoid["unit_id"],
            "medoid_input_id": medoid["input_id"],
        }
        for region, medoid in zip(regions, medoids, strict=True)
    ]


def slice_rows(split: Split, slices: list[MetadataSlice] | None) -> list[dict[str, Any]]:
    """The metadata slices behind C32."""
    return [
        {
            "dataset": split.dataset,
            "n_epoch": split.n_epoch,
            "slice": " and ".join(f"{name} = {value}" for name, value in found.conditions.items()),
            "n": found.size,
            "errors": found.errors,
            "rate": found.errors / found.size,
            "score": found.score,
            "p_value": found.p_value,
            "bh_sig": found.significant,
        }
        for found in slices or []
    ]
