"""Faults of a sensor rather than of an object: range drop-off (T11) and sector dropout (T12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri

from mld_core.evaluation.detection3d.bins import SECTORS, polar, range_bin
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, Predictions, Truths
from mld_core.evaluation.statistics.folds import FOLDS, assign_folds
from mld_core.evaluation.statistics.significance import benjamini_hochberg, binomial_upper
from mld_core.evaluation.statistics.warned import filters_kept

PSEUDO = 4.0
"""Pseudo-counts that pull the rate of a cell towards the overall one."""

FEWEST_EVENTS = 10
FEWEST_FRAMES = 20
LEFT = 0.05
"""Share of predictions that a dead sector still has, and of truths that are found in it."""

STEPS = 4 * SECTORS
"""Steps of 2.5 degrees: a dead sector need not begin where one of ours does."""

WINDOWS = (8, 10, 12, 14, 16, 20, 24, 36, 72, 144)
"""Numbers of consecutive steps that are looked at: two sectors of 10 degrees to all around."""


@dataclass(frozen=True)
class RangeBins:
    """T11: (N,) false predictions and (G,) missed truths in the flagged bins, and the figures of those."""

    predictions: Bools
    truths: Bools
    rows: list[dict[str, int | float]] = field(default_factory=list)


@dataclass(frozen=True)
class FlaggedBins:
    """(K, B) 10 m range bins in which a class fails, and the figures of those."""

    flagged: Bools
    rows: list[dict[str, int | float]] = field(default_factory=list)

    def of_boxes(
        self, predictions: Predictions, wrong: Bools, counted: Bools, truths: Truths, missed: Bools
    ) -> RangeBins:
        """What lies in them, of the boxes as `BinCounts.of` takes them."""
        there, where = range_bin(polar(predictions.box)[0]), range_bin(polar(truths.box)[0])
        hit = wrong & counted & (predictions.label >= 0)
        hit[hit] = self.flagged[predictions.label[hit], there[hit]]
        lost = missed & (truths.label >= 0)
        lost[lost] = self.flagged[truths.label[lost], where[lost]]
        return RangeBins(hit, lost, self.rows)


@dataclass(frozen=True)
class BinCounts:
    """Events of each class in each 10 m range bin; (K, B) false predictions and missed truths, and all."""

    errors: Floats
    events: Floats

    @classmethod
    def of(
        cls, predictions: Predictions, wrong: Bools, counted: Bools, truths: Truths, missed: Bools
    ) -> BinCounts:
        """Count those of a pass, or of a part of it.

        Args:
            predictions: (N,) kept predictions.
            wrong: (N,) false.
            counted: (N,) right or wrong.
            truths: (G,) truths.
            missed: (G,) counts and was not found.
        """
        there, where = range_bin(polar(predictions.box)[0]), range_bin(polar(truths.box)[0])
        n_class = 1 + max(int(predictions.label.max(initial=0)), int(truths.label.max(initial=0)))
        n_bin = 1 + max(int(there.max(initial=0)), int(where.max(initial=0)))

        def count(label: Ints, bins: Ints, rows: Bools) -> Floats:
            use = rows & (label >= 0) & (bins >= 0)
            flat = np.bincount(label[use] * n_bin + bins[use], minlength=n_class * n_bin)
            return flat.reshape(n_class, n_bin).astype(np.float64)

        lost = count(truths.label, where, missed)
        return cls(
            count(predictions.label, there, wrong & counted) + lost,
            count(predictions.label, there, counted) + lost,
        )

    @classmethod
    def merge(cls, states: Sequence[BinCounts]) -> BinCounts:
        """The counts of all."""
        shape = np.max([one.errors.shape for one in states], axis=0)
        made = cls(np.zeros(shape), np.zeros(shape))
        for one in states:
            span = tuple(map(slice, one.errors.shape))
            made.errors[span] += one.errors
            made.events[span] += one.events
        return made

    def flagged(self) -> FlaggedBins:
        """Bins in which a class fails more than it does elsewhere and more than others do there.

        A bin's error rate (false predictions and missed truths among all events) must be significantly above
        that of its class, and, where there are several classes, above what the bin's difficulty for the other
        classes and the class's own level explain: on the log-odds scale class + bin is fitted robustly, and
        the residual is compared with the spread of all residuals.
        """
        flagged, p = _standing_out(self.errors, self.events)
        rows: list[dict[str, int | float]] = [
            {
                "class": int(c),
                "range_bin": int(b),
                "n": int(self.events[c, b]),
                "errors": int(self.errors[c, b]),
                "p": float(p[c, b]),
            }
            for c, b in np.argwhere(flagged)
        ]
        return FlaggedBins(flagged, rows)


def _standing_out(errors: Floats, events: Floats) -> tuple[Bools, Floats]:
    """(K, B) cells above their class and above what class and bin explain, and the p-value of the latter."""
    of_class, in_class = errors.sum(axis=1, keepdims=True), events.sum(axis=1, keepdims=True)
    overall = errors.sum() / max(events.sum(), 1.0)
    rate = (of_class + PSEUDO * overall) / (in_class + PSEUDO)
    full = events >= FEWEST_EVENTS
    own = np.where(full, binomial_upper(errors, events, np.broadcast_to(rate, errors.shape)), np.nan)
    above = benjamini_hochberg(own.ravel()).reshape(errors.shape)
    if full.any(axis=1).sum() < 2:
        return above, own
    value = logit((errors + 0.5) / (events + 1))
    noise = np.sqrt(1 / (errors + 0.5) + 1 / (events - errors + 0.5))
    cells = np.where(full, value, np.nan)
    flagged, p = np.zeros(errors.shape, np.bool_), own
    # Of an even number of bins the lower median first, which a fault in half of them does not move; then
    # ordinary medians of what was not flagged, to which the flagged cells are compared again.
    for method in ("lower", "linear", "linear"):
        gap = _residuals(np.where(flagged, np.nan, cells), cells, method)
        known = gap[full & ~flagged]
        spread = 1.4826 * np.median(np.abs(known)) if len(known) else 0.0
        p = np.where(full, ndtr(-gap / np.sqrt(noise**2 + spread**2)), np.nan)
        flagged = above & benjamini_hochberg(p.ravel()).reshape(errors.shape)
    return flagged, p


def _residuals(usual: Floats, cells: Floats, method: str) -> Floats:
    """(K, B) what class and bin do not explain, both fitted by medians to `usual`."""
    level, bins = np.zeros((len(cells), 1)), np.zeros((1, cells.shape[1]))
    for _ in range(10):
        bins = _medians(usual - level, 0, method)
        level = _medians(usual - bins, 1, method)
    return np.asarray(cells - level - bins)


def _medians(values: Floats, axis: int, method: Any) -> Floats:
    known = np.where(np.isnan(values).all(axis=axis, keepdims=True), 0.0, values)
    return np.asarray(np.nanquantile(known, 0.5, axis=axis, keepdims=True, method=method))


@dataclass(frozen=True)
class SectorDropouts:
    """T12: (G,) missed truths in dead sectors, the frames and sectors, or why it could not be looked for."""

    truths: Bools
    rows: list[dict[str, int | float]] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class DeadSectors:
    """Two or more consecutive 10-degree sectors that fall silent in a frame.

    Attributes:
        frame: (D,) frames, rising.
        start: (D,) first silent step of each.
        length: (D,) how many.
        rows: Their figures.
        reason: Why they could not be looked for.
    """

    frame: Ints
    start: Ints
    length: Ints
    rows: list[dict[str, int | float]] = field(default_factory=list)
    reason: str = ""

    def of_truths(self, truths: Truths, missed: Bools, first_frame: int = 0) -> SectorDropouts:
        """(G,) truths in them that count and were not found at the operating threshold.

        Args:
            truths: Of a pass, or of a part of it.
            missed: (G,) counts and was not found.
            first_frame: Number of its first frame in the pass.
        """
        frame = truths.frame + first_frame
        place = np.searchsorted(self.frame, frame)
        there = np.append(self.frame, -1)[place] == frame
        place = np.where(there, place, len(self.frame))
        start, length = np.append(self.start, 0)[place], np.append(self.length, 0)[place]
        inside = (_step(polar(truths.box)[1]) - start) % STEPS < length
        return SectorDropouts(np.asarray(missed & truths.counts & inside), self.rows, self.reason)


@dataclass(frozen=True)
class SectorView:
    """What dead sectors show in; (G,) truths, (F,) frames.

    Attributes:
        frame: (G,) frames of the truths.
        label: (G,) classes.
        counts: (G,) truths that must be found.
        silent: (G,) no prediction of any class and score is near.
        distance: (G,) metres from the sensor.
        size: (G,) logarithm of the volume.
        step: (G,) where around the sensor.
        n_points: (G,) points in the truths, negative unknown, or None.
        found: (F, 144) recorded predictions in each step.
    """

    frame: Ints
    label: NDArray[np.int32]
    counts: Bools
    silent: Bools
    distance: Floats
    size: Floats
    step: NDArray[np.int16]
    n_points: NDArray[np.int32] | None
    found: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        truths: Truths,
        silent: Bools,
        recorded: Predictions,
        frames: int,
        n_points: NDArray[np.integer] | None = None,
    ) -> SectorView:
        """That of a pass, or of a part of it, of every recorded prediction."""
        there = _step(polar(recorded.box)[1]) if len(recorded) else np.empty(0, np.int64)
        found = np.bincount(recorded.frame * STEPS + there, minlength=frames * STEPS)
        distance, azimuth = polar(truths.box)
        return cls(
            truths.frame,
            truths.label.astype(np.int32),
            truths.counts,
            silent,
            distance,
            np.log(np.maximum(truths.box[:, 3:6].astype(np.float64), 1e-3)).sum(axis=1),
            _step(azimuth).astype(np.int16),
            None if n_points is None else n_points.astype(np.int32),
            found.reshape(frames, STEPS).astype(np.int32),
        )

    @classmethod
    def merge(cls, states: Sequence[SectorView]) -> SectorView:
        """That of all frames, in the order given."""
        made: dict[str, Any] = {}
        for name in vars(states[0]):
            parts = [getattr(one, name) for one in states]
            made[name] = None if any(part is None for part in parts) else np.concatenate(parts)
        first = np.cumsum([0, *(len(one.found) for one in states)])
        made["frame"] = np.concatenate([one.frame + at for one, at in zip(states, first, strict=False)])
        return cls(**made)

    def dead(self) -> DeadSectors:
        """Frames in which sectors fall silent.

        For each window of sectors the log-likelihood ratio of "dead" (5 % of predictions left, 95 % of truths
        without any) to "as usual" is summed: truths against their own probability to have no prediction of
        any score near them, predictions against the sector's history and the truths in it. The largest of a
        frame is compared with those of all other frames, Benjamini-Hochberg at 5 %.
        """
        frames, counts, silent = len(self.found), self.counts, self.silent
        if frames < FEWEST_FRAMES:
            none = np.empty(0, np.int64)
            return DeadSectors(none, none, none, reason=f"fewer than {FEWEST_FRAMES} frames")
        usual = _silence(self)
        evidence = np.where(silent, np.log((1 - LEFT) / usual), np.log(LEFT / (1 - usual)))
        cell = self.frame * STEPS + self.step
        silence = np.bincount(cell[counts], weights=evidence[counts], minlength=frames * STEPS)
        fewer = _fewer(cell[counts], 1 - usual[counts], self.found)
        best, start, length = _windows(silence.reshape(frames, STEPS).astype(np.float64) + fewer)
        flagged, p = _flagged(best)
        found = np.flatnonzero(flagged)
        rows: list[dict[str, int | float]] = [
            {
                "frame": f,
                "azimuth": float(start[f] * 360 / STEPS - 180),
                "degrees": int(length[f]) * 360 // STEPS,
                "p": float(p[f]),
            }
            for f in found.tolist()
        ]
        return DeadSectors(found, start[found], length[found], rows)


def _step(azimuth: NDArray[np.floating]) -> Ints:
    known = np.where(np.isfinite(azimuth), azimuth, 0.0)
    return np.asarray(np.clip(np.floor((known + 180.0) * STEPS / 360), 0, STEPS - 1).astype(np.int64))


def _silence(view: SectorView) -> Floats:
    """(G,) probability of each truth to have no prediction near it; cross-fitted logistic regression.

    From range, size, class, points, and the silence of its sector in the frames around.
    """
    from sklearn.linear_model import LogisticRegression

    silent = view.silent & view.counts
    rate = (silent.sum() + 0.5) / (view.counts.sum() + 1.0)
    made = np.full(len(silent), rate)
    known = np.flatnonzero(view.counts)
    distance, where, n_points = view.distance, view.step, view.n_points
    columns: list[NDArray[Any]] = [distance / 10, (distance / 30) ** 2, view.size]
    columns.append(_around(view, silent, rate))
    if n_points is not None:
        log_points = np.log1p(np.maximum(n_points.astype(np.int64), 0))
        columns += [log_points, log_points**2 / 4, n_points < 0, n_points == 0]
    columns += [view.label == one for one in np.unique(view.label[known])[1:]]
    table = np.column_stack(columns).astype(np.float64)
    folds = assign_folds(view.frame, "0") if len(silent) else np.empty(0, np.int8)
    for fold in range(FOLDS):
        held, rest = np.flatnonzero(folds == fold), known[folds[known] != fold]
        if len(held) and silent[rest].any() and not silent[rest].all():
            fitted = LogisticRegression(C=1.0, max_iter=500)
            with filters_kept():
                fitted.fit(table[rest], silent[rest])
            made[held] = fitted.predict_proba(table[held])[:, 1]
    seen = np.bincount(where[known], weights=silent[known], minlength=STEPS)
    expected = np.bincount(where[known], weights=made[known], minlength=STEPS)
    history = (seen + PSEUDO) / (expected + PSEUDO)
    odds = logit(np.clip(made, 1e-4, 1 - 1e-4)) + np.log(history[where])
    return np.asarray(np.clip(expit(odds), 1e-3, 1 - 1e-3))


def _around(view: SectorView, silent: Bools, rate: float) -> Floats:
    """(G,) log-odds of silence in the truth's sector over the two frames before and the two after."""
    frames = len(view.found)
    cell = view.frame * STEPS + view.step
    sums = []
    for rows in (silent, view.counts):
        per_cell = np.bincount(cell[rows], minlength=frames * STEPS).reshape(frames, STEPS)
        padded = np.pad(per_cell, ((2, 2), (0, 0)))
        around = padded[:frames] + padded[1 : frames + 1] + padded[3 : frames + 3] + padded[4 : frames + 4]
        sums.append(around[view.frame, view.step])
    share = (sums[0] + rate) / (sums[1] + 1.0)
    return np.asarray(logit(np.clip(share, 1e-3, 1 - 1e-3)))


def _fewer(cell: Ints, seen: Floats, found: NDArray[np.integer]) -> Floats:
    """(F, S) log-likelihood ratio of the number of predictions: 5 % of the expected ones to all of them.

    Expected is what least squares with positive weights makes of the sector's history scaled by the frame's
    number of predictions, of the truths in it that are usually found, and of the frames before and after
    (which get little weight where frames are in no order); counts vary as a negative binomial.

    Args:
        cell: (T,) frame * 144 + step of each truth.
        seen: (T,) its probability to have a prediction near it.
        found: (F, S) recorded predictions.
    """
    from scipy.optimize import nnls

    shape = found.shape
    true = np.bincount(cell, weights=seen, minlength=found.size).reshape(shape)
    busy = found.sum(axis=1, keepdims=True) / max(found.sum(axis=1).mean(), 1e-9)
    history = found.mean(axis=0)[None] * busy
    columns = np.stack([history, true, _neighbouring(found)], axis=-1).reshape(-1, 3)
    shares, _ = nnls(columns, found.ravel().astype(np.float64))
    expected = np.maximum((columns @ shares).reshape(shape), 1e-3)
    excess = ((found - expected) ** 2 - expected).sum()
    size = float((expected**2).sum() / excess) if excess > 0 else 1e6
    ratio = found * np.log(LEFT) + (found + size) * np.log((size + expected) / (size + LEFT * expected))
    return np.asarray(ratio)


def _neighbouring(found: NDArray[np.integer]) -> Floats:
    """(F, S) mean over the two frames before and the two after."""
    padded = np.pad(found.astype(np.float64), ((2, 2), (0, 0)), mode="edge")
    frames = len(found)
    return np.asarray(np.mean([padded[k : k + frames] for k in (0, 1, 3, 4)], axis=0))


def _windows(score: Floats) -> tuple[Floats, Ints, Ints]:
    """Largest sum over a window of each frame, the sector it begins with and its length."""
    frames = len(score)
    best, start = np.full(frames, -np.inf), np.zeros(frames, np.int64)
    length = np.full(frames, WINDOWS[0])
    around = np.concatenate([np.zeros((frames, 1)), np.cumsum(np.tile(score, 2), axis=1)], axis=1)
    for size in WINDOWS:
        sums = around[:, size : size + STEPS] - around[:, :STEPS]
        place = sums.argmax(axis=1)
        value = sums[np.arange(frames), place]
        better = value > best
        best[better], start[better], length[better] = value[better], place[better], size
    return best, start, length


def _flagged(values: Floats) -> tuple[Bools, Floats]:
    """(F,) values that stand out of the others, and their p-values.

    The upper half of usual values falls off like a normal distribution; its width is read from the median and
    the 85 % quantile, which faults in up to a tenth of the frames hardly move.
    """
    middle, high = np.quantile(values, [0.5, 0.85])
    width = max(float(high - middle) / float(ndtri(0.85)), 1e-9)
    p = np.asarray(ndtr(-(values - middle) / width))
    return benjamini_hochberg(p) & (values > 0), p
