"""The figures behind the charts: confusion, category by class, calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.views.units import PassUnits, rounded

MAX_CLASSES = 30
BINS = 15

Ints = NDArray[np.int64]


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
