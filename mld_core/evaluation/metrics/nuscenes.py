"""The nuScenes detection metrics: mAP by centre distance, true-positive errors, NDS.

Formulas: Caesar et al., "nuScenes: A multimodal dataset for autonomous driving" (2020), and nuscenes-devkit
`eval/detection/algo.py` with `detection_cvpr_2019.json`. Per class and frame, predictions by falling score
take the nearest free truth closer than 0.5, 1, 2 or 4 m in the ground plane; all four are decided at once, as
the bits of one integer for each prediction. NDS is (5 mAP + the sum of 1 - min(1, error) over the errors
there are) / (5 + their number): the official one where attributes are known (AAE), else without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.boxes import (
    Bools,
    Floats,
    FrameState,
    Ints,
    Predictions,
    Truths,
    near_pairs,
)
from mld_core.evaluation.metrics.matching import choose_counting, union_of_bits
from mld_core.geometry.boxes import wrap_yaw

DISTANCES = (0.5, 1.0, 2.0, 4.0)
"""Metres below which a prediction finds a truth."""

TP_DISTANCE = 2.0
"""Metres at which the true-positive errors are measured; also the event match of 3D detection."""

MIN_RECALL = 0.1
MIN_PRECISION = 0.1
AP_WEIGHT = 5.0
POINTS = 101
ERRORS = ("ate", "ase", "aoe", "ave")
"""Translation (m), scale (1 - aligned IoU), orientation (radians), velocity (m/s)."""

ATTRIBUTE = "aae"
"""The fifth error, where attributes are known: 1 where the predicted one is another than the true one."""

_ALL_ERRORS = (*ERRORS, ATTRIBUTE)

CLASS_RANGES = {
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), 50.0),
    **dict.fromkeys(("pedestrian", "motorcycle", "bicycle"), 40.0),
    **dict.fromkeys(("traffic_cone", "barrier"), 30.0),
}
"""Metres from the ego vehicle within which nuScenes counts boxes."""

_TP = DISTANCES.index(TP_DISTANCE)
_EVERY = np.uint8((1 << len(DISTANCES)) - 1)
Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class NuscenesProfile:
    """What differs between classes.

    Attributes:
        class_range: (K,) metres from the frame's origin beyond which boxes of a class are left out.
        period: (K,) radians after which a class looks the same: pi for barriers.
        oriented: (K,) whether the class has a heading (cones have none).
        moves: (K,) whether the class has a velocity (cones and barriers have none).
        absent_as_zero: a class without truths counts with AP 0 and errors 1, as in the devkit; else it
            counts in no mean.
    """

    class_range: Floats
    period: Floats
    oriented: Bools
    moves: Bools
    absent_as_zero: bool

    @classmethod
    def of(cls, class_names: Sequence[str], *, limit_range: bool | None = None) -> NuscenesProfile:
        """The devkit's rules where all classes are nuScenes', else one rule for all.

        Args:
            class_names: (K,) names.
            limit_range: leave out boxes beyond `CLASS_RANGES`; None: where all classes are nuScenes'.

        Example:
            >>> NuscenesProfile.of(["car", "barrier"]).class_range.tolist()
            [50.0, 30.0]
            >>> NuscenesProfile.of(["Car", "Van"]).absent_as_zero
            False
        """
        names = [str(name).lower().replace(" ", "_").replace("-", "_") for name in class_names]
        theirs = bool(names) and all(name in CLASS_RANGES for name in names)
        limited = theirs if limit_range is None else limit_range
        far = [CLASS_RANGES.get(name, np.inf) if limited else np.inf for name in names]
        return cls(
            np.array(far, np.float64),
            np.array([np.pi if name == "barrier" else 2 * np.pi for name in names]),
            np.array([name != "traffic_cone" for name in names], np.bool_),
            np.array([name not in {"traffic_cone", "barrier"} for name in names], np.bool_),
            theirs,
        )

    @property
    def n_class(self) -> int:
        """Number of classes."""
        return len(self.class_range)

    def inside(self, box: NDArray[np.floating], label: Ints, place: Floats | None = None) -> Bools:
        """(N,) boxes of a known class within its range, of the origin or from `place` (N, 2), metres."""
        known = (label >= 0) & (label < self.n_class)
        where = box[:, :2].astype(np.float64) if place is None else place
        near = np.hypot(where[:, 0], where[:, 1])
        return np.asarray(known & (near < self.class_range[np.where(known, label, 0)]))


@dataclass(frozen=True)
class NuscenesState(FrameState):
    """What matching found in some frames; states of further frames are appended with `merge`.

    Attributes:
        label: (N,) class of each prediction that counts.
        score: (N,) its score.
        right: (N,) bit t: it found a truth closer than `DISTANCES[t]`.
        ignored: (N,) likewise: it found only an ignored truth.
        error: (M, 5) `ERRORS` and that of the attribute of the predictions that are right at 2 m, in order;
            NaN where unknown.
        truths: (K,) truths that must be found.
        velocities: whether velocities were given.
        attributes: whether attributes were given.
    """

    label: NDArray[np.int32]
    score: NDArray[np.floating]
    right: Bits
    ignored: Bits
    error: Floats
    truths: Ints
    velocities: bool
    attributes: bool = False


def match_nuscenes(
    predictions: Predictions,
    truths: Truths,
    profile: NuscenesProfile,
    *,
    velocities: NDArray[np.floating] | None = None,
    true_velocities: NDArray[np.floating] | None = None,
    n_points: NDArray[np.integer] | None = None,
    attributes: NDArray[np.integer] | None = None,
    true_attributes: NDArray[np.integer] | None = None,
    places: Floats | None = None,
    true_places: Floats | None = None,
) -> NuscenesState:
    """Match the predictions of some frames.

    Args:
        predictions: boxes (N, 7) cx, cy, cz, w, l, h, yaw; the origin is the ego vehicle or its sensor. Of
            equal scores the later row comes first, as in the devkit.
        truths: truths of the same frames. Ignored ones take predictions out of the count.
        profile: what differs between classes.
        velocities: (N, 2) predicted, m/s; NaN unknown.
        true_velocities: (G, 2) true, m/s.
        n_points: (G,) sensor points in each truth; truths with 0 are left out, as nuScenes does; -1 unknown.
        attributes: (N,) predicted, by number; -1: none.
        true_attributes: (G,) true; -1: none.
        places: (N, 2) centres from the ego vehicle, metres, for the limits of range; None: the origin is it.
        true_places: (G, 2) likewise.
    """
    near = profile.inside(predictions.box, predictions.label, places)
    kept = np.flatnonzero(near & ~np.isnan(predictions.score))
    wanted = profile.inside(truths.box, truths.label, true_places)
    if n_points is not None:
        wanted &= n_points != 0
    there = np.flatnonzero(wanted)
    found, true = predictions.take(kept), truths.take(there)
    right, ignored, at_two = match_by_distance(found, true, profile.n_class)
    hits = np.flatnonzero(right >> np.uint8(_TP) & np.uint8(1))
    known = velocities is not None and true_velocities is not None
    error = tp_errors(
        found.box[hits],
        true.box[at_two[hits]],
        profile.period[found.label[hits]],
        velocities[kept][hits] if velocities is not None else None,
        true_velocities[there][at_two[hits]] if true_velocities is not None else None,
    )
    named = attributes is not None and true_attributes is not None
    other = np.full((len(hits), 1), np.nan)
    if attributes is not None and true_attributes is not None:
        asked = true_attributes[there][at_two[hits]]
        other[:, 0] = np.where(asked >= 0, attributes[kept][hits] != asked, np.nan)
    counted = np.bincount(true.label[true.counts], minlength=profile.n_class)
    return NuscenesState(
        found.label.astype(np.int32),
        found.score,
        right,
        ignored,
        np.concatenate([error, other], axis=1),
        counted.astype(np.int64),
        known,
        named,
    )


def match_by_distance(predictions: Predictions, truths: Truths, n_class: int) -> tuple[Bits, Bits, Ints]:
    """Greedy matching by centre distance at all of `DISTANCES`.

    Args:
        predictions: of known classes, scores without NaN.
        truths: of known classes.
        n_class: number of classes.

    Returns:
        (N,) bits of the distances at which a prediction found a truth, and found an ignored one; (N,) row of
        the truth found at 2 m, -1 for none.

    Example:
        >>> box = np.array([[0, 0, 0, 2, 4, 1, 0.0], [0.7, 0, 0, 2, 4, 1, 0.0]])
        >>> zeros = np.zeros(2, np.int64)
        >>> found = Predictions(zeros, zeros, np.array([0.9, 0.8]), box)
        >>> none = np.zeros(1, bool)
        >>> true = Truths(zeros[:1], zeros[:1], box[:1], none, none)
        >>> [part.tolist() for part in match_by_distance(found, true, 1)]
        [[15, 0], [0, 0], [0, -1]]
    """
    rows = np.arange(len(predictions))
    group = predictions.frame * n_class + predictions.label
    order = np.lexsort((-rows, -predictions.score, group))
    target = truths.frame * n_class + truths.label
    by_group = np.argsort(target, kind="stable")
    pairs = near_pairs(
        predictions.box[order], group[order], truths.box[by_group], target[by_group], DISTANCES[-1]
    )
    pairs = replace(pairs, right=by_group[pairs.right])
    allowed = np.zeros(len(pairs), np.uint8)
    for t, most in enumerate(DISTANCES):
        allowed |= (pairs.value < most).astype(np.uint8) << np.uint8(t)
    ignore = np.where(truths.counts, np.uint8(0), _EVERY)
    made = choose_counting(pairs, (pairs.right, pairs.value), group[order], allowed, ignore, truths.crowd)
    own = order[pairs.left]
    right, ignored = (union_of_bits(own, bits, len(rows)) for bits in made)
    at_two = np.full(len(rows), -1, np.int64)
    two = np.flatnonzero(made[0] >> np.uint8(_TP) & np.uint8(1))
    at_two[own[two]] = pairs.right[two]
    return right, ignored, at_two


def tp_errors(
    found: NDArray[np.floating],
    true: NDArray[np.floating],
    period: Floats | float = 2 * np.pi,
    velocity: NDArray[np.floating] | None = None,
    true_velocity: NDArray[np.floating] | None = None,
) -> Floats:
    """(M, 4) `ERRORS` of matched pairs; the velocity error is NaN where one is unknown.

    Args:
        found: (M, 7) predicted boxes.
        true: (M, 7) their truths.
        period: radians after which a box looks the same, one or (M,).
        velocity: (M, 2) predicted.
        true_velocity: (M, 2) true.

    Example:
        >>> box = np.array([[0, 0, 0, 2, 4, 1, 0.0]])
        >>> tp_errors(box + [3, 4, 0, 0, 4, 0, 3.0], box).round(3).tolist()
        [[5.0, 0.5, 3.0, nan]]
    """
    a, b = found.astype(np.float64), true.astype(np.float64)
    out = np.full((len(a), 4), np.nan)
    out[:, 0] = np.hypot(a[:, 0] - b[:, 0], a[:, 1] - b[:, 1])
    shared = np.minimum(a[:, 3:6], b[:, 3:6]).prod(axis=1)
    whole = a[:, 3:6].prod(axis=1) + b[:, 3:6].prod(axis=1) - shared
    with np.errstate(divide="ignore", invalid="ignore"):
        out[:, 1] = 1 - shared / whole
    half = np.asarray(period) / 2
    turned = np.mod(wrap_yaw(b[:, 6]) - wrap_yaw(a[:, 6]) + half, 2 * half) - half
    out[:, 2] = np.abs(turned)
    if velocity is not None and true_velocity is not None:
        gap = velocity.astype(np.float64) - true_velocity.astype(np.float64)
        out[:, 3] = np.hypot(gap[:, 0], gap[:, 1])
    return out


@dataclass(frozen=True)
class NuscenesMetrics:
    """The metrics with their curves; NaN where a class has no truth.

    Attributes:
        ap: (4, K) average precision by distance and class.
        error: (5, K) `ERRORS` and that of the attribute by class, NaN where the class has none.
        precision: (4, K, 101) precision by distance and class at recalls 0 to 1.
        confidence: (K, 101) score at which each recall is reached at 2 m, 0 where it is not.
        curve: (5, K, 101) the errors by class at the same recalls, NaN where the recall is not reached.
        truths: (K,) truths.
        profile: what differs between classes.
        velocities: whether AVE is known.
        attributes: whether AAE is.
    """

    ap: Floats
    error: Floats
    precision: Floats
    confidence: Floats
    curve: Floats
    truths: Ints
    profile: NuscenesProfile
    velocities: bool
    attributes: bool = False

    @property
    def recall(self) -> Floats:
        """(101,) the recalls of the curves."""
        return np.linspace(0, 1, POINTS)

    @property
    def mean_ap(self) -> float | None:
        """Mean over classes and distances; None without a truth."""
        return self._mean(self.ap.mean(axis=0), 0.0)

    def mean_error(self, name: str) -> float | None:
        """Mean of one of `ERRORS`, or `ATTRIBUTE`, over the classes that have it; None where not known."""
        if (name == "ave" and not self.velocities) or (name == ATTRIBUTE and not self.attributes):
            return None
        return self._mean(self.error[_ALL_ERRORS.index(name)], 1.0, self._has(name))

    @property
    def nds(self) -> float | None:
        """(5 mAP + sum of 1 - min(1, error)) / (5 + number of errors); nuScenes' own with all five."""
        means = [self.mean_error(name) for name in _ALL_ERRORS]
        known = [1 - min(1.0, value) for value in means if value is not None]
        mean_ap = self.mean_ap
        if mean_ap is None:
            return None
        return (AP_WEIGHT * mean_ap + sum(known)) / (AP_WEIGHT + len(known))

    def summary(self) -> dict[str, float | None]:
        """The headline figures under the names of the result tables; None where undefined.

        `map_d05` to `map_d4` are the means over classes at 0.5 to 4 m.
        """
        at = {
            f"map_d{most:g}".replace(".", ""): self._mean(self.ap[t], 0.0) for t, most in enumerate(DISTANCES)
        }
        means = {f"m{name}": self.mean_error(name) for name in _ALL_ERRORS}
        return {"map": self.mean_ap, "nds": self.nds, **means, **at}

    def of_class(self, number: int) -> dict[str, float | None]:
        """AP and errors of one class; None where it has no truth or no such error."""
        made = {"ap": _number(self.ap[:, number].mean())}
        made |= {
            f"ap_d{most:g}".replace(".", ""): _number(self.ap[t, number]) for t, most in enumerate(DISTANCES)
        }
        return made | {name: _number(self.error[k, number]) for k, name in enumerate(ERRORS)}

    def _has(self, name: str) -> Bools | None:
        """(K,) classes that have an error at all, None for all of them."""
        moves = self.profile.moves
        return {"aoe": self.profile.oriented, "ave": moves, ATTRIBUTE: moves}.get(name)

    def _mean(self, values: Floats, absent: float, has: Bools | None = None) -> float | None:
        there = self.truths > 0
        if not there.any():
            return None
        if self.profile.absent_as_zero:
            values = np.where(there, values, absent)
        known = ~np.isnan(values)
        kept = values[known if has is None else known & has]
        return float(kept.mean()) if len(kept) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def nuscenes_metrics(state: NuscenesState, profile: NuscenesProfile) -> NuscenesMetrics:
    """Average precision, true-positive errors and their curves from the matches."""
    n_class = profile.n_class
    ap = np.full((len(DISTANCES), n_class), np.nan)
    error = np.full((len(_ALL_ERRORS), n_class), np.nan)
    precision = np.full((len(DISTANCES), n_class, POINTS), np.nan)
    confidence = np.full((n_class, POINTS), np.nan)
    curve = np.full((len(_ALL_ERRORS), n_class, POINTS), np.nan)
    place = np.cumsum(state.right >> np.uint8(_TP) & np.uint8(1)) - 1
    by_score = np.lexsort((-np.arange(len(state.label)), -state.score, state.label))
    edges = np.searchsorted(state.label[by_score], np.arange(n_class + 1))
    for c in np.flatnonzero(state.truths > 0):
        rows = by_score[edges[c] : edges[c + 1]]
        for t in range(len(DISTANCES)):
            kept, precision[t, c], reached = _precision(state, rows, t, int(state.truths[c]))
            ap[t, c] = _average_precision(precision[t, c])
            if t == _TP:
                confidence[c] = reached
                hits = kept[(state.right[kept] >> np.uint8(t) & np.uint8(1)).astype(np.bool_)]
                values = state.error[place[hits]]
                own = [0, 1, 2]
                own += [3] if state.velocities and profile.moves[c] else []
                own += [4] if state.attributes and profile.moves[c] else []
                scores = state.score[hits].astype(np.float64)
                curve[own, c], error[own, c] = _error_curves(values[:, own], scores, reached)
        if not profile.oriented[c]:
            error[2, c] = curve[2, c] = np.nan
    return NuscenesMetrics(
        ap, error, precision, confidence, curve, state.truths, profile, state.velocities, state.attributes
    )


def _precision(state: NuscenesState, rows: Ints, t: int, truths: int) -> tuple[Ints, Floats, Floats]:
    """Rows that count, and precision and score at the recall points, of one class at one distance."""
    bit = np.uint8(t)
    kept = rows[(state.ignored[rows] >> bit & np.uint8(1)) == 0]
    tp = (state.right[kept] >> bit & np.uint8(1)).astype(np.float64)
    found = np.cumsum(tp)
    if not len(found) or found[-1] == 0:
        return kept, np.zeros(POINTS), np.zeros(POINTS)
    recall = found / truths
    points = np.linspace(0, 1, POINTS)
    precision = np.interp(points, recall, found / np.arange(1, len(kept) + 1), right=0)
    return kept, precision, np.interp(points, recall, state.score[kept], right=0)


def _average_precision(precision: Floats) -> float:
    beyond = np.maximum(precision[round(100 * MIN_RECALL) + 1 :] - MIN_PRECISION, 0)
    return float(beyond.mean() / (1 - MIN_PRECISION))


def _error_curves(values: Floats, scores: Floats, reached: Floats) -> tuple[Floats, Floats]:
    """(E, 101) curves and (E,) errors: the running mean by falling score, read at the recall points."""
    count = values.shape[1]
    curve, error = np.full((count, POINTS), np.nan), np.ones(count)
    if len(values) == 0:
        return curve, error
    first = round(100 * MIN_RECALL) + 1
    last = int(np.flatnonzero(reached)[-1]) if reached.any() else 0
    for k in range(count):
        known = ~np.isnan(values[:, k])
        so_far = np.cumsum(known)
        running = np.divide(np.nancumsum(values[:, k]), so_far, out=np.zeros(len(values)), where=so_far > 0)
        if not known.any():
            running = np.ones(len(values))
        read = np.interp(reached[::-1], scores[::-1], running[::-1])[::-1]
        curve[k, : last + 1] = read[: last + 1]
        if last >= first:
            error[k] = float(read[first : last + 1].mean())
    return curve, error
