"""Where 3D boxes lie and what is known of them: bins, break-downs of events, and the bird's-eye heatmap.

The origin is the sensor's or the vehicle's, whichever frame the boxes were recorded in; x ahead, y left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints
from mld_core.evaluation.metrics.classification import jeffreys_interval
from mld_core.evaluation.statistics.significance import M_GRID, benjamini_hochberg, binomial_upper

RANGE_METRES = 10.0
SECTOR_DEGREES = 10.0
SECTORS = 36
POINT_EDGES = (0, 1, 6, 21, 101, 501)
"""First number of points of each bin: none, 1-5, 6-20, 21-100, 101-500, more."""

SPEED_EDGES = (0.0, 0.5, 2.0, 5.0, 10.0)
"""m/s at which a bin begins: standing, and up to walking, slow, town and faster."""

STRONGEST = float(M_GRID[-2])


def polar(box: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """(N,) range in metres and azimuth in degrees, counter-clockwise from +x in [-180, 180).

    Example:
        >>> [part.tolist() for part in polar(np.array([[0, 5, 1, 1, 1, 1, 0.0], [-3, 0, 0, 1, 1, 1, 0]]))]
        [[5.0, 3.0], [90.0, -180.0]]
    """
    x, y = box[:, 0].astype(np.float64), box[:, 1].astype(np.float64)
    azimuth = np.degrees(np.arctan2(y, x))
    return np.hypot(x, y), np.where(azimuth >= 180, azimuth - 360, azimuth)


def range_bin(distance: NDArray[np.floating]) -> Ints:
    """(N,) number of the 10 m bin; -1 for NaN."""
    known = np.isfinite(distance)
    return np.where(known, np.floor(np.where(known, distance, 0) / RANGE_METRES), -1).astype(np.int64)


def sector(azimuth: NDArray[np.floating]) -> Ints:
    """(N,) number of the 10-degree sector, 0 from -180 degrees, 35 the last.

    Example:
        >>> sector(np.array([-180.0, 0.0, 179.9])).tolist()
        [0, 18, 35]
    """
    known = np.where(np.isfinite(azimuth), azimuth, 0.0)
    return np.asarray(np.clip(np.floor((known + 180.0) / SECTOR_DEGREES), 0, SECTORS - 1).astype(np.int64))


def range_names(bins: Ints) -> NDArray[np.object_]:
    """Texts of range bins, null for -1.

    Example:
        >>> range_names(np.array([0, 3, -1])).tolist()
        ['0-10 m', '30-40 m', None]
    """
    step = int(RANGE_METRES)
    return np.array([None if k < 0 else f"{k * step}-{(k + 1) * step} m" for k in bins.tolist()], object)


def points_names(n_points: NDArray[np.integer]) -> NDArray[np.object_]:
    """Texts of point-count bins, null for negative (unknown) counts.

    Example:
        >>> points_names(np.array([0, 5, 6, 900, -1])).tolist()
        ['0', '1-5', '6-20', '501+', None]
    """
    names = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(POINT_EDGES)]
    return _names_of([*names, f"{POINT_EDGES[-1]}+"], POINT_EDGES, n_points)


def speed_names(velocity: NDArray[np.floating]) -> NDArray[np.object_]:
    """Texts of speed bins of (N, 2) velocities in m/s, null where unknown.

    Example:
        >>> speed_names(np.array([[0.1, 0], [3, 4], [20, 0], [np.nan, 0]])).tolist()
        ['0-0.5 m/s', '5-10 m/s', '10+ m/s', None]
    """
    speed = np.hypot(velocity[:, 0], velocity[:, 1])
    names = [f"{low:g}-{high:g} m/s" for low, high in pairwise(SPEED_EDGES)] + [f"{SPEED_EDGES[-1]:g}+ m/s"]
    return _names_of(names, SPEED_EDGES, np.nan_to_num(speed, nan=-1.0))


def _names_of(
    names: list[str], edges: tuple[float, ...], values: NDArray[np.integer | np.floating]
) -> NDArray[np.object_]:
    """The names of the bins that begin at the edges, null below the first."""
    place = np.searchsorted(edges, values, side="right") - 1
    return np.array([None if k < 0 else names[k] for k in place.tolist()], object)


def breakdown(
    found: NDArray[np.object_],
    right: Bools,
    true: NDArray[np.object_],
    missed: Bools,
    errors: Floats | None = None,
) -> list[dict[str, str | int | float | None]]:
    """Counts, recall, precision and mean true-positive errors of each bin; None where undefined.

    Args:
        found: (N,) bin of each prediction that counts; null ones are left out.
        right: (N,) it found a truth.
        true: (G,) bin of each truth that counts.
        missed: (G,) it was not found.
        errors: (N, 4) errors of `metrics_nuscenes.ERRORS`, NaN where wrong or unknown.

    Returns:
        One row for each bin, in rising order: `bin`, `n_gt`, `n_pred`, `n_tp`, `n_fp`, `n_fn`,
        `recall`, `precision`, and with `errors` `ate`, `ase`, `aoe`, `ave`.

    Example:
        >>> bins = np.array(["0-10 m", "10-20 m"], object)
        >>> yes, no = np.array([True, True]), np.array([False, False])
        >>> breakdown(bins, yes, bins, no)[1]["recall"]
        1.0
    """
    names = {one for one in (*found.tolist(), *true.tolist()) if one is not None}
    rows: list[dict[str, str | int | float | None]] = []
    for name in sorted(names, key=_place):
        mine, own = found == name, true == name
        tp, fn = int((mine & right).sum()), int((own & missed).sum())
        n_gt, n_pred = int(own.sum()), int(mine.sum())
        row: dict[str, str | int | float | None] = {
            "bin": name,
            "n_gt": n_gt,
            "n_pred": n_pred,
            "n_tp": tp,
            "n_fp": n_pred - tp,
            "n_fn": fn,
            "recall": (n_gt - fn) / n_gt if n_gt else None,
            "precision": tp / n_pred if n_pred else None,
        }
        if errors is not None:
            for k, error in enumerate(("ate", "ase", "aoe", "ave")):
                values = errors[mine & right, k]
                values = values[~np.isnan(values)]
                row[error] = float(values.mean()) if len(values) else None
        rows.append(row)
    return rows


def _place(name: str) -> tuple[float, str]:
    """Bins by their first number, other texts (classes) by themselves."""
    number = re.match(r"\d+(\.\d+)?", name)
    return (float(number[0]) if number else -1.0, name)


@dataclass(frozen=True)
class BevHeatmap:
    """Errors by range (rows, 10 m) and azimuth (columns, 10 degrees from -180); (R, 36) arrays.

    Attributes:
        range_edges: (R + 1,) metres.
        azimuth_edges: (37,) degrees.
        n: events.
        errors: those that are wrong.
        value: error rate, shrunk towards the overall rate with weight m; NaN without any event.
        low: 2.5 % quantile of the rate (Jeffreys), NaN in an empty cell.
        high: 97.5 % quantile.
        significant: above the overall rate, Benjamini-Hochberg at 5 % over the cells.
    """

    range_edges: Floats
    azimuth_edges: Floats
    n: Ints
    errors: Ints
    value: Floats
    low: Floats
    high: Floats
    significant: Bools


def bev_heatmap(
    distance: NDArray[np.floating],
    azimuth: NDArray[np.floating],
    wrong: Bools,
    *,
    farthest: float | None = None,
    weight: float = 8.0,
) -> BevHeatmap:
    """Fill the grid from events (kept predictions and missed truths).

    Args:
        distance: (N,) metres.
        azimuth: (N,) degrees.
        wrong: (N,) false predictions and missed truths.
        farthest: metres the grid reaches; None: what occurs. Events beyond it are left out.
        weight: m of the density (evaluation of the pass), at most 1024.

    Example:
        >>> made = bev_heatmap(np.array([5.0, 15, 15]), np.array([0.0, 0, 0]), np.array([False, True, True]))
        >>> made.n.shape, int(made.errors[1, 18]), made.range_edges.tolist()
        ((2, 36), 2, [0.0, 10.0, 20.0])
    """
    known = np.isfinite(distance) & np.isfinite(azimuth)
    rings = range_bin(np.where(known, distance, 0.0))
    count = int(np.ceil(farthest / RANGE_METRES)) if farthest is not None else int(rings.max(initial=0)) + 1
    use = np.flatnonzero(known & (rings < count))
    cell = rings[use] * SECTORS + sector(azimuth[use])
    n = np.bincount(cell, minlength=count * SECTORS)
    errors = np.bincount(cell[wrong[use]], minlength=count * SECTORS)
    overall = float(wrong[use].mean()) if len(use) else np.nan
    m = min(weight, STRONGEST)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (m * overall + errors) / (m + n)
    pairs = [jeffreys_interval(int(e), int(k)) for e, k in zip(errors, n, strict=True)]
    low, high = (
        np.array([np.nan if pair[side] is None else pair[side] for pair in pairs], float) for side in (0, 1)
    )
    p = np.where(n > 0, binomial_upper(errors.astype(float), n.astype(float), overall), np.nan)
    shape = (count, SECTORS)
    return BevHeatmap(
        np.arange(count + 1, dtype=np.float64) * RANGE_METRES,
        np.linspace(-180.0, 180.0, SECTORS + 1),
        n.reshape(shape),
        errors.reshape(shape),
        value.reshape(shape),
        low.reshape(shape),
        high.reshape(shape),
        benjamini_hochberg(p).reshape(shape),
    )
