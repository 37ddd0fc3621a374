"""Diagnoses unit by unit, from what was learned of all: those of them that this can be said of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis.evidence import NEEDS, Evidence
from mld_core.evaluation.analysis.explanation import asked_again
from mld_core.evaluation.analysis.halves import Replays
from mld_core.evaluation.analysis.labels.quality import LabelPosterior
from mld_core.evaluation.classification.diagnoses import DIAGNOSES, significant_pairs
from mld_core.evaluation.codes.diagnosis import (
    GRAVE,
    Diagnoses,
    Mask,
    Repeated,
    ranked,
    repeated,
    stable_places,
)

LOCAL = frozenset({"C01", "C02", "C11", "C13", "C20", "C21", "C22", "C23"})
"""Codes whose predicates read one unit at a time."""

LOOKED_UP = frozenset({"C03", "C04", "C10", "C50"})
"""Codes that are looked up in what was learned of all units."""

NOT_IN_ROUNDS = "an evaluation in rounds does not compute it (engine='memory' does)"


@dataclass(frozen=True)
class CodeFits:
    """What the diagnoses need to know of other units.

    Attributes:
        n_class: Number of classes.
        pairs: Significant (label, prediction) pairs as label x K + prediction: of all, then of each half.
        conflicting: Sorted hashes of inputs that stand there with several labels.
        leaked: Sorted hashes of inputs that the train split holds too; None where that is not known.
        miscalibrated: (J,) cells whose mean confidence differs from their accuracy.
        hashed: Whether the inputs are hashed.
        stable: Code -> (regions + 1,) at which it is the same units' from half to half; the first is outside.
    """

    n_class: int
    pairs: tuple[NDArray[np.int64], ...]
    conflicting: NDArray[Any]
    leaked: NDArray[Any] | None
    miscalibrated: NDArray[np.bool_]
    hashed: bool
    stable: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


def pairs_of(evidence: Evidence, kept: NDArray[np.bool_], n_class: int) -> tuple[NDArray[np.int64], ...]:
    """Significant confusions of a sample of units, and of those each half keeps."""
    usable = evidence.wrong & (evidence.labels >= 0) & (evidence.prediction >= 0)
    made = []
    for own in (np.ones(len(usable), np.bool_), *kept):
        rows = np.flatnonzero(usable & own)
        found = significant_pairs(evidence.labels[rows], evidence.prediction[rows])
        made.append(np.array(sorted(t * n_class + y for t, y in found), np.int64))
    return tuple(made)


def diagnosed(
    evidence: Evidence,
    replays: Replays,
    posterior: LabelPosterior,
    region: NDArray[np.int32],
    fits: CodeFits,
) -> Diagnoses:
    """Codes of the units of a block; grave ones that vary are asked again of the halves."""
    masks, absent = _masks(evidence, fits), reasons(fits, is_train=evidence.is_train)
    known: dict[str, Repeated] = {}
    for code, again in _again(evidence, replays, posterior, masks, fits).items():
        known[code] = repeated(again, region.astype(np.int64) + 1, fits.stable[code])
    return ranked(DIAGNOSES, masks, absent, evidence.rows, known)


def stable_codes(
    evidence: Evidence,
    replays: Replays,
    posterior: LabelPosterior,
    region: NDArray[np.int32],
    fits: CodeFits,
    regions: int,
) -> CodeFits:
    """The same, with where the codes of a sample of units are the same ones from half to half."""
    masks = _masks(evidence, fits)
    place = region.astype(np.int64) + 1
    found = {
        code: stable_places(again, place, regions + 1)
        for code, again in _again(evidence, replays, posterior, masks, fits).items()
    }
    varying = {one.code for one in DIAGNOSES if one.varies and one.severity >= GRAVE and one.code in masks}
    nowhere = {code: np.ones(regions + 1, np.bool_) for code in varying - found.keys()}
    return replace(fits, stable={**nowhere, **found})


def _masks(evidence: Evidence, fits: CodeFits) -> dict[str, Mask]:
    made: dict[str, Mask] = {}
    for one in DIAGNOSES:
        if one.code in LOCAL and one.predicate is not None:
            made[one.code] = one.predicate(evidence)
        elif one.code == "C03" and fits.hashed:
            made[one.code] = _among(evidence.hashes, fits.conflicting) & (evidence.labels >= 0)
        elif one.code == "C04" and fits.leaked is not None and not evidence.is_train:
            made[one.code] = _among(evidence.hashes, fits.leaked)
        elif one.code == "C10":
            made[one.code] = _confused(evidence, fits.pairs[0], fits.n_class)
        elif one.code == "C50":
            made[one.code] = fits.miscalibrated[evidence.cells.cell] & (evidence.errors >= 0)
    return made


def _again(
    evidence: Evidence,
    replays: Replays,
    posterior: LabelPosterior,
    masks: Mapping[str, Mask],
    fits: CodeFits,
) -> dict[str, Mask]:
    """Code -> (halves, n) who carries it in which half, of the grave codes that vary and apply at all."""
    asked = [
        one
        for one in DIAGNOSES
        if one.varies and one.severity >= GRAVE and one.code in masks and masks[one.code].any()
    ]
    made: dict[str, list[Mask]] = {one.code: [] for one in asked}
    for half, other in enumerate(asked_again(evidence, replays, posterior) if asked else ()):
        for one in asked:
            if one.code == "C10":
                made[one.code].append(_confused(other, fits.pairs[1 + half], fits.n_class))
            elif one.predicate is not None:
                made[one.code].append(one.predicate(other))
    return {code: np.stack(found) for code, found in made.items()}


def _confused(evidence: Evidence, pairs: NDArray[np.int64], n_class: int) -> Mask:
    usable = evidence.wrong & (evidence.labels >= 0) & (evidence.prediction >= 0)
    found = np.isin(evidence.labels * n_class + evidence.prediction, pairs)
    return np.asarray(usable & found & evidence.flags.dense)


def _among(hashes: NDArray[Any] | None, sought: NDArray[Any]) -> Mask:
    if hashes is None or not len(sought):
        return np.zeros(0 if hashes is None else len(hashes), np.bool_)
    there = np.array([one if one is not None else "" for one in hashes], dtype=str)
    return np.asarray(np.isin(there, sought))


def reasons(fits: CodeFits, *, is_train: bool) -> dict[str, str]:
    """Code -> why it is not computed, for every code that is not."""
    made = {}
    for one in DIAGNOSES:
        why = NOT_IN_ROUNDS
        if one.code in LOCAL | LOOKED_UP - {"C03", "C04"}:
            continue
        if "comparison" in one.needs:
            why = NEEDS["comparison"]
        elif is_train and "other_split" in one.needs:
            why = NEEDS["other_split"]
        elif not is_train and "train_split" in one.needs:
            why = NEEDS["train_split"]
        elif one.code == "C03":
            if fits.hashed:
                continue
            why = "no input hashes are recorded (input_hash=False)"
        elif one.code == "C04":
            if fits.leaked is not None:
                continue
            why = "no train split with input hashes of the same kind is recorded"
        made[one.code] = f"not computable: {why}"
    return made
