"""The map of a split: two principal axes of its features, as points and as a grid of error rates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.results.heatmap import STRONGEST, TAIL
from mld_core.evaluation.statistics.significance import benjamini_hochberg, binomial_upper
from mld_core.records.format.vectors import is_vector, to_numpy
from mld_core.records.read.reader import PassSelection
from mld_core.views.tables import plain
from mld_core.views.units import PassUnits, rounded, spread

MAX_POINTS = 2_500
LEAST_PER_KIND = 60
GRID = 64
UNITS_PER_CELL = 8
FIT_ROWS = 20_000
PSEUDO_COUNTS = 4.0

Floats = NDArray[np.float64]


def coordinates(units: PassUnits) -> tuple[Floats, str] | None:
    """(N, 2) coordinates of the units and where they come from, None where no features are stored."""
    if units.has("pca_1") and units.has("pca_2"):
        both = np.stack([units.floats("pca_1"), units.floats("pca_2")], axis=1)
        return both, "principal axes of the features of this evaluation"
    records = units.records
    if records is None or not records.has("vectors"):
        return None
    aliases = [field.name for field in records.schema("vectors") if is_vector(field)]
    features = [name for name in aliases if name != "logits"]
    alias = features[-1] if features else "logits"
    if alias not in aliases:
        return None
    found = pca(records, alias, units.rows)
    return None if found is None else (found, f"principal axes of {alias!r}")


def pca(records: PassSelection, alias: str, rows: int) -> Floats | None:
    """(N, 2) scores on the two leading principal axes of an alias, streamed.

    The axes are fitted on at most `FIT_ROWS` rows, each axis signed so that its largest loading is positive.
    Rows with NaN or infinity get NaN.
    """
    chosen = np.zeros(rows, np.bool_)
    chosen[spread(rows, FIT_ROWS)] = True
    sample = [part[chosen[start : start + len(part)]] for start, part in _stream(records, alias)]
    fit = np.concatenate(sample) if sample else np.empty((0, 1))
    fit = fit[np.isfinite(fit).all(axis=1)]
    if len(fit) < 3 or fit.shape[1] < 2:
        return None
    mean = fit.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(fit - mean, rowvar=False))
    axes = vectors[:, [-1, -2]]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    made = np.full((rows, 2), np.nan)
    for start, part in _stream(records, alias):
        good = np.isfinite(part).all(axis=1)
        made[start : start + len(part)][good] = (part[good] - mean) @ (axes * signs)
    return made


def _stream(records: PassSelection, alias: str) -> Any:
    start = 0
    for batch in records.batches("vectors", [alias], 16_384):
        part = np.asarray(to_numpy(batch.column(0), batch.schema.field(0)), np.float64)
        yield start, part
        start += len(part)


def chosen_points(kinds: NDArray[np.str_], finite: NDArray[np.bool_]) -> NDArray[np.int64]:
    """At most about `MAX_POINTS` rows: an even draw, and at least `LEAST_PER_KIND` of each kind."""
    there = np.flatnonzero(finite)
    picked = [there[spread(len(there), MAX_POINTS)]]
    for kind in np.unique(kinds[there]):
        own = there[kinds[there] == kind]
        picked.append(own[spread(len(own), LEAST_PER_KIND, salt=1)])
    return np.unique(np.concatenate(picked)) if len(there) else there


def split_map(units: PassUnits, pseudo_counts: float | None) -> dict[str, Any] | None:
    """Points and grid of a split; None where there are no features.

    Args:
        units: The pass.
        pseudo_counts: `m` of the categories; cells show (m * overall + errors) / (m + n).
    """
    found = coordinates(units)
    if found is None:
        return None
    points, source = found
    finite = np.asarray(np.isfinite(points).all(axis=1), np.bool_)
    if finite.sum() < 3:
        return None
    kinds = units.category if (units.category != "").any() else _kinds(units)
    rows = chosen_points(kinds, finite)
    names = sorted(set(kinds[rows].tolist()))
    number = {name: place for place, name in enumerate(names)}
    ids = units.take(rows.tolist(), ["input_id"])
    return {
        "source": source,
        "kinds": names,
        "x": rounded(points[rows, 0]),
        "y": rounded(points[rows, 1]),
        "kind": [number[name] for name in kinds[rows].tolist()],
        "truth": units.truth[rows].tolist(),
        "said": units.prediction[rows].tolist(),
        "id": [str(one["input_id"])[:60] for one in ids],
        "shown": len(rows),
        "units": int(finite.sum()),
        "grid": error_grid(points[finite], units.errors[finite], pseudo_counts),
    }


def _kinds(units: PassUnits) -> NDArray[np.str_]:
    return np.array(["unlabelled", "right", "wrong"])[units.errors.astype(np.int64) + 1]


def error_grid(
    points: Floats, errors: NDArray[np.int8], pseudo_counts: float | None
) -> dict[str, Any] | None:
    """Cells over the central 99 % of the map, as `Result.heatmap("pca_1:<bins>", "pca_2:<bins>")` has them.

    64 x 64 of them, fewer (at least 16 x 16) where that would leave under `UNITS_PER_CELL` units to a cell.

    Returns:
        `bins`, the number of columns and of rows; then, only of the cells that hold labelled units, place `i`
        (column), `j` (row), `n`, `errors`, `rate` (shrunk) and `sig` (above the overall rate after
        Benjamini-Hochberg).
    """
    known = errors >= 0
    if not known.any():
        return None
    low, high = np.quantile(points, [TAIL, 1 - TAIL], axis=0)
    width = np.where(high > low, high - low, 1.0)
    bins = int(np.clip(np.sqrt(len(points) / UNITS_PER_CELL), 16, GRID))
    cell = np.clip(np.floor((points[known] - low) / width * bins).astype(np.int64), 0, bins - 1)
    flat = cell[:, 1] * bins + cell[:, 0]
    n = np.bincount(flat, minlength=bins * bins)
    bad = np.bincount(flat, weights=errors[known] == 1, minlength=bins * bins)
    overall = float((errors[known] == 1).mean())
    m = PSEUDO_COUNTS if pseudo_counts is None else min(pseudo_counts, STRONGEST)
    there = np.flatnonzero(n)
    return {
        "bins": bins,
        "x": [plain(low[0]), plain(high[0])],
        "y": [plain(low[1]), plain(high[1])],
        "i": (there % bins).tolist(),
        "j": (there // bins).tolist(),
        "n": n[there].tolist(),
        "errors": bad[there].astype(np.int64).tolist(),
        "rate": rounded((m * overall + bad[there]) / (m + n[there]), 3),
        "sig": benjamini_hochberg(binomial_upper(bad[there], n[there].astype(np.float64), overall)).tolist(),
        "overall": plain(overall),
        "m": m,
    }
