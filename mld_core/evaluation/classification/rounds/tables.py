"""What the rounds found about a pass, as the rows, facts and notes of a result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mld_core.evaluation.analysis.explanation import fitted_facts
from mld_core.evaluation.analysis.issue_tables import (
    notes_of,
    plain_facts,
    projected_shares,
    rows_of_regions,
    threshold_row,
)
from mld_core.evaluation.analysis.stages import Split, StageOutput, Value
from mld_core.evaluation.classification.diagnoses import DIAGNOSES
from mld_core.evaluation.classification.gather import feature_notes
from mld_core.evaluation.classification.rounds.block import SAMPLE, Counted
from mld_core.evaluation.classification.rounds.codes import NOT_IN_ROUNDS, reasons
from mld_core.evaluation.classification.rounds.outcome import Outcome
from mld_core.evaluation.classification.rounds.scoring import Fits
from mld_core.evaluation.codes.diagnosis import Diagnosis
from mld_core.evaluation.results.database import database
from mld_core.evaluation.results.store import ResultStore
from mld_core.evaluation.space.cells import beta_quantile
from mld_core.evaluation.space.regions import TOP, Region
from mld_core.evaluation.statistics.significance import benjamini_hochberg, binomial_upper

LEFT_OUT = tuple(
    f"evaluated in rounds: {what}"
    for what in (
        f"cells of units stand for neighbours, and fits are made on at most {SAMPLE:,} labelled units",
        "no list of a unit's neighbours; duplicates and leaks (C03, C04) are those of equal hashes alone",
        "no neighbours in the train split: neither its labels nor its distances enter, and no C30, C31, C33",
        "no 95 % intervals, no metadata slices (C32), no earlier epochs (C40 to C42), no order of data (C05)",
        "metrics of the error probability are from 65,536-bin histograms of it",
        "regions are named by their first confusion; layers share their cells (no C12)",
    )
)
"""What an evaluation in rounds does not compute, a sentence each."""


def output_of(
    split: Split,
    counted: Counted,
    fits: Fits | None,
    found: Any,
    options: Mapping[str, Any],
    results: ResultStore,
) -> StageOutput:
    """What the rounds found of a split."""
    if fits is None or not isinstance(found, Outcome):
        return _without_analysis(split)
    metrics: dict[str, Value] = {**found.metrics(), "error_proba_source": fits.estimator.source}
    categories = category_cells(fits, found)
    facts = {**facts_of(fits, found), **_codes(fits, found)}
    notes = [*LEFT_OUT, *feature_notes(fits.split.layers)]
    if counted.soft:
        notes.append(f"evaluated in rounds: {counted.soft} soft labels count as their largest class in cells")
    if options.get("null_run"):
        notes.append("evaluated in rounds: null_run is not computed, null_hotspot_ratio has no value")
    notes += notes_of(
        split, fits.estimator, fits.used, fits.density, {**facts["not_computable"]}, known=(NOT_IN_ROUNDS,)
    )
    return StageOutput(
        metrics=metrics,
        categories=categories,
        facts={"labeled": split.labeled, **plain_facts(facts)},
        notes=tuple(notes),
        tables={"regions": regions_of(split, fits, found, results, DIAGNOSES)},
    )


def category_cells(fits: Fits, found: Outcome) -> dict[str, Value]:
    """Cells of the split's row in the category table."""
    made: dict[str, Value] = {
        f"{name.removeprefix('five_way_')}_five_way" if name.startswith("five_way_") else name: value
        for name, value in found.ratios().items()
    }
    made |= threshold_row(fits.used, fits.density)
    if found.projected.sum():
        made |= projected_shares(found.projected / found.projected.sum())
    return made


def _without_analysis(split: Split) -> StageOutput:
    if split.rows == 0:
        return StageOutput()
    if split.width("logits") is None:
        text = "no logits are stored: error probabilities, issue categories and diagnoses need them"
    else:
        text = "evaluated in rounds: units without a label are not projected onto another split"
    return StageOutput(notes=(text,))


def facts_of(fits: Fits, found: Outcome) -> dict[str, Any]:
    """What was learned of a split, but its diagnoses."""
    estimator = fits.estimator
    return {
        **fitted_facts(fits.used, fits.density, estimator.source, estimator.reason, estimator.guard_z),
        "neighbours": "cells",
        "neighbour_recall": float("nan"),
        "cells": len(fits.regions.cells),
        "n_hat": round(found.n_hat),
        "label_evidence": fits.labels.gain,
        "label_weights": fits.labels.pool.weights.mean(axis=0).tolist(),
        "layers": list(fits.ground.space.names),
        "train_reference": False,
    }


def _codes(fits: Fits, found: Outcome) -> dict[str, Any]:
    counts = {one.code: found.codes[place] for place, one in enumerate(DIAGNOSES)}
    absent = reasons(fits.codes, is_train=fits.split.is_train)
    there = {code: both for code, both in counts.items() if code not in absent}
    return {
        "not_computable": absent,
        "code_counts": {code: int(both[0]) for code, both in there.items()},
        "sure_counts": {code: int(both[1]) for code, both in there.items()},
    }


def regions_of(
    split: Split, fits: Fits, found: Outcome, results: ResultStore, registry: Sequence[Diagnosis[Any]]
) -> list[dict[str, Any]]:
    """Rows of the table of regions; names and medoids are read off the unit table."""
    if not len(fits.regions):
        return []
    size, wrong = found.sizes.T.astype(np.float64)
    overall = fits.around.counts[:, 0].sum(axis=0)
    p_values = binomial_upper(wrong, size, float(overall[1] / max(overall[0], 1.0)))
    passed = benjamini_hochberg(p_values)
    lows = beta_quantile(wrong + 0.5, size - wrong + 0.5)
    names, classes, medoids = _read_regions(split, found, results)
    codes = [one.code for one in registry]
    steady = found.steady[:, 1] / np.maximum(found.steady[:, 0], 1)
    made = []
    for number in range(len(size)):
        carried = found.of_regions[number]
        order = [place for place in np.lexsort((np.arange(len(carried)), -carried)) if carried[place]]
        made.append(
            Region(
                number,
                int(size[number]),
                int(wrong[number]),
                float(wrong[number] / max(size[number], 1)),
                float(lows[number]),
                float(p_values[number]),
                bool(passed[number]),
                classes[number],
                [codes[place] for place in order[:TOP]],
                int(found.medoid[number, 1]),
                names.get(number, "no errors"),
                float(steady[number]),
            )
        )
    return rows_of_regions(split, made, medoids)


def _read_regions(
    split: Split, found: Outcome, results: ResultStore
) -> tuple[dict[int, str], dict[int, list[int]], list[dict[str, Any]]]:
    """Most frequent confusion and labels of each region, and the ids of the medoids."""
    classes: dict[int, list[int]] = defaultdict(list)
    with database(results.spill, units=[split.units]) as connection:
        pairs = connection.execute(
            "SELECT region_id, gt, prediction, count(*) AS n FROM units "
            "WHERE region_id IS NOT NULL AND is_error GROUP BY ALL ORDER BY region_id, n DESC, gt, prediction"
        ).fetchall()
        labels = connection.execute(
            "SELECT region_id, gt, count(*) AS n FROM units WHERE region_id IS NOT NULL AND gt IS NOT NULL "
            "GROUP BY ALL ORDER BY region_id, n DESC, gt"
        ).fetchall()
        wanted = [f"{int(row):09d}" for row in found.medoid[:, 1]]
        ids = dict(
            connection.execute(
                "SELECT unit_id, input_id FROM units WHERE unit_id IN (SELECT unnest(?))", [wanted]
            ).fetchall()
        )
    names: dict[int, str] = {}
    for region, truth, said, _ in pairs:
        # No class is background, which classifiers do not have.
        of = "bg" if truth is None else truth
        names.setdefault(region, f"{of}->{-1 if said is None else said}")
    for region, label, _ in labels:
        if len(classes[region]) < TOP:
            classes[region].append(label)
    return names, classes, [{"unit_id": one, "input_id": ids.get(one)} for one in wanted]
