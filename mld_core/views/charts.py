"""The figures behind the charts: confusion, category by class, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.views.tables import class_label
from mld_core.views.units import PassUnits, rounded
from mld_core.views.words.texts import CATEGORY_TEXTS

MAX_CLASSES = 30
BINS = 15

Ints = NDArray[np.int64]


def shown_classes(units: PassUnits, n_class: int) -> Ints:
    """The classes a matrix shows: all, or the `MAX_CLASSES` with the most errors, by number."""
    if n_class <= MAX_CLASSES:
        return np.arange(n_class)
    wrong = units.errors == 1
    involved = np.concatenate([units.truth[wrong], units.prediction[wrong]])
    count = np.bincount(involved[involved >= 0], minlength=n_class)
    return np.sort(np.argsort(-count, kind="stable")[:MAX_CLASSES])


def confusion(units: PassUnits, n_class: int, names: Sequence[str] | None) -> dict[str, Any] | None:
    """Counts of (true, predicted) class, and each row's shares; None without labels.

    The last column is "no prediction" where logits were not finite, and "other classes" where classes are
    left out.
    """
    labeled = units.truth >= 0
    if not labeled.any():
        return None
    classes = shown_classes(units, n_class)
    place = np.full(n_class + 1, len(classes), np.int64)
    place[classes] = np.arange(len(classes))
    truth, said = units.truth[labeled], units.prediction[labeled]
    no_answer = said < 0
    column = place[np.where(no_answer, n_class, said)]
    column[no_answer] = len(classes) + 1
    row = place[truth]
    inside = row < len(classes)
    width = len(classes) + 2
    flat = np.bincount(row[inside] * width + column[inside], minlength=len(classes) * width)
    counts = flat.reshape(len(classes), width)
    keep = [*range(len(classes)), *(one for one in (width - 2, width - 1) if counts[:, one].any())]
    extra = {width - 2: "other classes", width - 1: "no prediction"}
    counts = counts[:, keep]
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    labels = [class_label(int(one), names) for one in classes]
    return {
        "rows": labels,
        "columns": [labels[one] if one < len(labels) else extra[one] for one in keep],
        "counts": counts.tolist(),
        "share": [rounded(one) for one in share],
        "left_out": n_class - len(classes),
    }


def category_by_class(units: PassUnits, n_class: int, names: Sequence[str] | None) -> dict[str, Any] | None:
    """Units of each (category, true class), and the share of the class; None without categories."""
    known = (units.category != "") & (units.truth >= 0)
    if not known.any():
        return None
    classes = shown_classes(units, n_class)
    categories = [text.name for text in CATEGORY_TEXTS]
    number = {name: place for place, name in enumerate(categories)}
    row = np.array([number.get(str(name), -1) for name in units.category[known]], np.int64)
    truth = units.truth[known]
    counts = np.zeros((len(categories), n_class), np.int64)
    np.add.at(counts, (row[row >= 0], truth[row >= 0]), 1)
    total = counts.sum(axis=0, keepdims=True)
    share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    return {
        "rows": categories,
        "columns": [class_label(int(one), names) for one in classes],
        "counts": counts[:, classes].tolist(),
        "share": [rounded(one) for one in share[:, classes]],
        "left_out": n_class - len(classes),
    }


def reliability(stated: NDArray[np.float64], happened: NDArray[np.int8]) -> dict[str, Any] | None:
    """A reliability diagram over 15 bins of equal width, and its expected calibration error.

    ECE = sum over bins of n_b / n * |mean stated - share happened| (Naeini et al. 2015).

    Args:
        stated: (N,) probabilities; NaN are left out.
        happened: (N,) 1 it did, 0 it did not, -1 unknown.

    Example:
        >>> reliability(np.array([0.9, 0.9]), np.array([1, 0], np.int8))["ece"]
        0.4
    """
    known = np.isfinite(stated) & (happened >= 0)
    if not known.any():
        return None
    p, y = stated[known], happened[known].astype(np.float64)
    where = np.clip((p * BINS).astype(np.int64), 0, BINS - 1)
    n = np.bincount(where, minlength=BINS)
    mean = np.divide(np.bincount(where, p, BINS), n, out=np.full(BINS, np.nan), where=n > 0)
    rate = np.divide(np.bincount(where, y, BINS), n, out=np.full(BINS, np.nan), where=n > 0)
    gap = np.nansum(np.abs(mean - rate) * n) / n.sum()
    return {
        "n": n.tolist(),
        "stated": rounded(mean),
        "observed": rounded(rate),
        "ece": float(f"{gap:.4g}"),
        "units": int(n.sum()),
    }


def calibration(units: PassUnits) -> dict[str, Any]:
    """Reliability of the softmax confidence (right?) and of the error probability (wrong?)."""
    errors = units.errors
    right = np.where(errors < 0, -1, 1 - errors).astype(np.int8)
    return {
        "confidence": reliability(units.floats("confidence"), right),
        "error_proba": reliability(units.floats("error_proba"), errors),
    }
