"""Label quality: which label the evidence points at, and how many labels are probably wrong.

The label posterior q is a log-opinion pool, q ~ prod_m p_m^w_m, of the network's softmax and the labels of
the nearest train units. A given label is drawn from q, or is, with a probability of its own, any label at
all: weights and that probability are fitted together, out of fold. What the model does not know makes q flat,
not labels wrong; and whether any label is wrong is asked by the likelihood. Which labels get mistaken for
which follows from both (`swaps`). Where labels of any kind are found wrong, pairs that the model confuses are
taken out of that (`confusions`). Where they are not, pairs of classes are asked one by one (`pairs`), and
only their labels can be wrong then. Labels that follow the model's doubt show where it is sure (`plateau`),
or by being the runner-up more often than what the model doubts about (`slips`).

Witnesses out of the split itself (its neighbours where no train split is recorded, and for the train split a
logistic probe) have seen the wrong labels and confirm them: they may count a tenth of the network. In the
train split the network has learned each of them by heart, see `by_heart`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit, ndtr

from mld_core.evaluation.analysis.labels.confusions import find_confusions
from mld_core.evaluation.analysis.labels.pairs import find_pairs
from mld_core.evaluation.analysis.labels.plateau import Plateau, find_plateau
from mld_core.evaluation.analysis.labels.pool import FLOOR, Pair, Pool, fit_pool, handed_on, normalised, pool
from mld_core.evaluation.analysis.labels.slips import Slips, find_slips
from mld_core.evaluation.analysis.labels.swaps import (
    MOST_CLASSES,
    alike,
    fit_swaps,
    of_pairs,
    swapped_share,
)
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.neighbourhood import Neighbourhood
from mld_core.evaluation.statistics.blocks import let_go, rows_at_once, spans
from mld_core.evaluation.statistics.folds import FOLDS, hash_uniform
from mld_core.evaluation.statistics.significance import BOUNDARY_GAIN
from mld_core.evaluation.statistics.warned import filters_kept

NEIGHBOURS = 32
PSEUDO_COUNTS = 1.5
"""Spread over the classes of the neighbours' labels."""

FIT_UNITS = 20_000
PROBE_UNITS = 20_000
PROBE_CLASSES = 200

Member = Callable[[NDArray[np.int64]], NDArray[np.floating]]
"""Log-probabilities (len(rows), K) of the units asked about."""


@dataclass(frozen=True)
class LabelPosterior:
    """The label posterior q of every unit.

    Attributes:
        given: (N,) float32 q of the given label against the others, those that are mistaken for it often
            counting more; NaN where unlabelled. The label-quality score.
        best: (N,) int64 most plausible label, smallest on a tie.
        best_proba: (N,) float32 its q.
        weights: (5, members) the fitted weights, one row for each held-out fold.
        wrong: (N,) float32 probability that another label than the given one is right; 0 where nothing says
            that labels are wrong.
        n_hat: Estimated number of wrong labels: the sum of `wrong` where q points elsewhere.
        gain: Log-likelihood that wrong labels explain; below `BOUNDARY_GAIN` none are claimed.
        limit: Label quality up to which labels are suspected where the network knows them by heart (see
            `by_heart`); None: those that are rather wrong than a draw from q.
    """

    given: NDArray[np.float32]
    best: NDArray[np.int64]
    best_proba: NDArray[np.float32]
    weights: NDArray[np.float64]
    wrong: NDArray[np.float32]
    n_hat: int
    gain: float
    limit: float | None = None

    @property
    def certainty(self) -> NDArray[np.float32]:
        """(N,) probability that half of the data would still say of a label that it is rather a wrong one.

        Half of it must show wrong labels at all (twice the gained log-likelihood is the square of a normal
        deviate, which halves with the data), and estimates their share from half as many of them.
        """
        shown = ndtr(np.sqrt(max(self.gain, 0.0)) - np.sqrt(2 * BOUNDARY_GAIN))
        odds = logit(np.clip(self.wrong.astype(np.float64), FLOOR, 1 - FLOOR))
        return np.asarray(shown * ndtr(odds / np.sqrt(2 / max(self.n_hat, 1))), dtype=np.float32)


def log_softmax_member(logits: NDArray[Any]) -> Member:
    """The network's own softmax; also what sigmoids say where exactly one class is right."""

    def member(rows: NDArray[np.int64]) -> NDArray[np.floating]:
        z = np.asarray(logits[rows], dtype=np.float64)
        let_go(logits)
        z = np.where(np.isfinite(z).all(axis=1, keepdims=True), z, 0.0)
        return _floored(normalised(z))

    return member


def probability_member(probability: NDArray[np.floating]) -> Member:
    """Probabilities as given, such as the softmax averaged over epochs."""
    return lambda rows: _floored(np.asarray(probability[rows], dtype=np.float64))


def neighbour_member(around: Neighbourhood, base_labels: NDArray[np.int64], n_class: int) -> Member:
    """Labels of the 32 nearest units, own group left out, with 1.5 pseudo-counts spread over the classes."""
    return lambda rows: smoothed(around.label_counts(base_labels, n_class, NEIGHBOURS, rows))


def train_member(near_labels: NDArray[np.integer], n_class: int) -> Member:
    """The same of the 32 nearest train units, from their (N, 32) labels, -1 = none."""

    def member(rows: NDArray[np.int64]) -> NDArray[np.floating]:
        flat = near_labels[rows] + 1 + np.arange(len(rows))[:, None] * (n_class + 1)
        counts = np.bincount(flat.ravel(), minlength=len(rows) * (n_class + 1))
        return smoothed(counts.reshape(len(rows), n_class + 1)[:, 1:])

    return member


def smoothed(counts: NDArray[Any]) -> NDArray[np.floating]:
    """Log-probabilities from (n, K) neighbours of each label, 1.5 pseudo-counts spread over the classes."""
    share = PSEUDO_COUNTS / counts.shape[1]
    return np.asarray(np.log((counts + share) / (counts.sum(axis=1, keepdims=True) + PSEUDO_COUNTS)))


def probe_member(
    points: NDArray[np.float32], labels: NDArray[np.int64], folds: NDArray[np.int8], n_class: int
) -> Member:
    """A logistic probe on the first 32 PCA coordinates, cross-fitted over the folds, 20,000 units a fit."""
    from sklearn.linear_model import LogisticRegression

    x = points[:, :32]
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    fitted: list[tuple[Any, NDArray[np.int64]] | None] = []
    for fold in range(FOLDS):
        train = np.flatnonzero((labels >= 0) & (folds != fold))
        keep = hash_uniform(train.astype(np.uint64), 301 + fold) < PROBE_UNITS / max(len(train), 1)
        rows = train[keep]
        classes = np.unique(labels[rows])
        if len(classes) < 2:
            fitted.append(None)
            continue
        model = LogisticRegression(max_iter=300)
        with filters_kept():
            model.fit(x[rows], labels[rows])
        fitted.append((model, classes))

    def member(rows: NDArray[np.int64]) -> NDArray[np.floating]:
        p = np.full((len(rows), n_class), 1 / n_class)
        for fold in range(FOLDS):
            here = np.flatnonzero(folds[rows] == fold)
            pair = fitted[fold]
            if len(here) and pair is not None:
                p[here] = 0
                p[here[:, None], pair[1][None, :]] = pair[0].predict_proba(x[rows[here]])
        return _floored(p)

    return member


def _floored(p: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(np.log(np.maximum(p, FLOOR)))


@dataclass(frozen=True)
class PoolState:
    """What is fitted on a sample of the labelled units, one of each for every held-out fold.

    Attributes:
        weights: (5, members).
        noise: (5,) share of wrong labels.
        swaps: 5 of (K, K) factors, see `fit_swaps`.
        gain: Log-likelihood per unit that wrong labels explain.
        pairs: Where only labels of these pairs are found wrong, (given, true); else none.
        confused: Pairs that the model confuses, (given, said): such labels are right.
        shares: (5, confused) how much of what the pool says is the given one.
        plateau: Where labels are found wrong that follow the model's doubt; else None.
        slips: Where labels are the runner-up more often than right ones would be; else None.
    """

    weights: NDArray[np.float64]
    noise: NDArray[np.float64]
    swaps: tuple[NDArray[np.float32], ...]
    gain: float
    pairs: tuple[Pair, ...] = ()
    confused: tuple[Pair, ...] = ()
    shares: NDArray[np.float64] = field(default_factory=lambda: np.zeros((FOLDS, 0)))
    plateau: Plateau | None = None
    slips: Slips | None = None

    def shown(self, units: int) -> bool:
        """Whether among so many units labels of any kind, or of the pairs, are found wrong."""
        return self.gain * units >= BOUNDARY_GAIN

    def gained(self, units: int) -> float:
        """Log-likelihood that the wrong labels which are claimed of so many units explain."""
        gains = [self.gain]
        if self.plateau is not None:
            gains.append(self.plateau.gain)
        if self.slips is not None and self.slips.claimed:
            gains.append(self.slips.gain)
        return max(gains) * units


def fit_posterior(
    values: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    folds: NDArray[np.int8],
    own: Sequence[bool],
    around: NDArray[np.floating] | None = None,
) -> PoolState:
    """Fit the pool of each fold on the sampled units of the other folds.

    Args:
        values: (n, K) log-probabilities of each member on the sample.
        labels: (n,) given labels.
        folds: (n,) folds.
        own: Which members are of the split itself.
        around: (n, K) log-probabilities of the split's own neighbours, where they are no member.
    """
    n_class = values[0].shape[1]
    fitted = [Pool(np.full(len(values), 1 / len(values)), 0.0, np.zeros(0), 0.0)] * FOLDS
    swaps = [alike(n_class)] * FOLDS
    counts, expected = np.broadcast_to(0.0, (n_class, n_class)), np.zeros(n_class)
    pairs, confused, gain = _asked_of_all(values, labels, own, around)
    noise, shares = np.zeros(FOLDS), np.zeros((FOLDS, len(confused)))
    for fold in range(FOLDS):
        train = folds != fold
        if not train.any():
            continue
        some = [value[train] for value in values]
        fitted[fold] = fit_pool(some, labels[train], own, noise=not pairs, pairs=[*confused, *pairs])
        shares[fold] = fitted[fold].shares[: len(confused)]
        q = handed_on(pool(some, fitted[fold].weights), confused, shares[fold])
        if pairs:
            noise[fold], swaps[fold] = fitted[fold].swaps(q, pairs)
            continue
        noise[fold] = fitted[fold].noise
        found = fit_swaps(q, labels[train], noise[fold])
        swaps[fold], expected = found.factors, expected + found.expected
        counts = counts + found.counts if n_class <= MOST_CLASSES else counts
    # Asked once, of everyone: folds that answered differently would judge like labels differently.
    if not pairs and not of_pairs(counts / (FOLDS - 1), expected / (FOLDS - 1)):
        swaps = [alike(n_class)] * FOLDS
    weights = np.stack([one.weights for one in fitted])
    state = PoolState(weights, noise, tuple(swaps), gain, tuple(pairs), tuple(confused), shares)
    return replace(state, **_with_doubt(values, labels, folds, own, around, state))


def _with_doubt(
    values: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    folds: NDArray[np.int8],
    own: Sequence[bool],
    around: NDArray[np.floating] | None,
    state: PoolState,
) -> dict[str, Any]:
    """Labels that are wrong in step with the model's doubt, where the split's own neighbours can be asked."""
    near = next((value for value, mine in zip(values, own, strict=True) if mine), around)
    if near is None or all(own) or not len(labels):
        return {}
    z = _log_odds(values, folds, values[0].shape[1], state)
    best, _, _, wrong = _judged(z.copy(), labels, folds, state)
    known = (wrong > 0.5) & (best != labels) & state.shown(len(labels))
    return {
        "plateau": find_plateau(values, labels, folds, best, own, near, known, state.confused),
        "slips": find_slips(
            values, z, labels, folds, best, own, known, None if any(own) else near, state.confused
        ),
    }


def _asked_of_all(
    values: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    own: Sequence[bool],
    around: NDArray[np.floating] | None,
) -> tuple[list[Pair], list[Pair], float]:
    """Pairs that get mistaken for each other, where labels of any kind are not; what wrong labels gain."""
    if not len(labels):
        return [], [], 0.0
    confused, right, any_label = find_confusions(values, labels, own, around)
    gain = any_label.value - right.value
    if gain * len(labels) >= BOUNDARY_GAIN:
        return [], confused, gain
    pairs, known = find_pairs(values, labels, own, right, around, confused)
    return pairs, confused, known.value - right.value if pairs else gain


def label_posterior(
    members: Sequence[Member],
    labels: NDArray[np.int64],
    folds: NDArray[np.int8],
    n_class: int,
    workers: Workers,
    *,
    own: Sequence[bool] | None = None,
    around: Member | None = None,
) -> LabelPosterior:
    """Pool the members, weights fitted for each fold on the labelled units of the other folds.

    Args:
        members: Each gives log-probabilities of any rows.
        labels: (N,) given labels, -1 where unlabelled; unlabelled units use the weights of fold 0's
            complement.
        folds: (N,) folds.
        n_class: Number of classes.
        workers: Open pool.
        own: Which members are of the split itself; None = none.
        around: The split's own neighbours, where they are no member.
    """
    known = np.flatnonzero(labels >= 0)
    keep = hash_uniform(known.astype(np.uint64), 401) < FIT_UNITS / max(len(known), 1)
    sample = known[keep]
    values = [member(sample) for member in members]
    near = None if around is None else around(sample)
    state = fit_posterior(values, labels[sample], folds[sample], own or [False] * len(members), near)
    return posterior_of(members, labels, folds, n_class, state, len(known), workers)


def posterior_of(
    members: Sequence[Member],
    labels: NDArray[np.int64],
    folds: NDArray[np.int8],
    n_class: int,
    state: PoolState,
    units: int,
    workers: Workers,
) -> LabelPosterior:
    """The label posterior of any units by a fitted pool; `units` are all that are labelled, here or not."""
    given, wrong = np.full(len(labels), np.nan, np.float32), np.zeros(len(labels), np.float32)
    best, best_proba = np.empty(len(labels), np.int64), np.empty(len(labels), np.float32)
    slipped = np.zeros(len(labels), np.float32)

    def one(span: slice) -> None:
        rows = np.arange(span.start, span.stop)
        values: Iterable[NDArray[np.floating]] = (member(rows) for member in members)
        given_labels, fold = labels[rows], folds[rows]
        if state.plateau is None and state.slips is None:
            z = _log_odds(values, fold, n_class, state)
            best[span], best_proba[span], given[span], wrong[span] = _judged(z, given_labels, fold, state)
            return
        values = list(values)
        z = _log_odds(values, fold, n_class, state)
        best[span], best_proba[span], quality, wrong[span] = _judged(z.copy(), given_labels, fold, state)
        if state.plateau is not None:
            slipped[span] = state.plateau.wrong(values, best[span], given_labels, fold)
        if state.slips is not None:
            likelier = state.slips.likelier(values, z, best[span], given_labels, fold)
            # No wrong label of any kind among those that were seen does not say that there is none.
            stray = (state.noise[fold] * units + 1) / (units + 2) / n_class
            quality = state.slips.quality(quality, likelier, stray, fold)
            if state.slips.claimed:
                slipped[span] = np.maximum(slipped[span], state.slips.wrong(likelier, fold))
        given[span] = quality

    workers.each(one, spans(len(labels), rows_at_once(n_class)))
    if not state.shown(units):
        wrong[:] = 0
    elif state.pairs:
        named = [given_label * n_class + true for given_label, true in state.pairs]
        wrong[~np.isin(labels * n_class + best, named)] = 0
    wrong = np.maximum(wrong, slipped)
    count = round(float(wrong[(labels >= 0) & (best != labels)].sum()))
    return LabelPosterior(given, best, best_proba, state.weights, wrong, count, state.gained(units))


def _log_odds(
    values: Iterable[NDArray[np.floating]], folds: NDArray[np.int8], n_class: int, state: PoolState
) -> NDArray[np.float64]:
    """(n, K) log-odds of the classes by the pool."""
    z = np.zeros((len(folds), n_class))
    for at, value in enumerate(values):
        z += value * state.weights[folds, at][:, None]
    return z


def _judged(
    z: NDArray[np.float64], labels: NDArray[np.int64], folds: NDArray[np.int8], state: PoolState
) -> tuple[NDArray[Any], ...]:
    """Of each unit: most plausible label, its q, quality of the given one, probability that it is wrong.

    `z` is written over.
    """
    q = handed_on(normalised(z), state.confused, state.shares[folds])
    given, wrong = np.full(len(labels), np.nan), np.zeros(len(labels))
    for fold in range(FOLDS):
        some = np.flatnonzero((labels >= 0) & (folds == fold))
        given[some], wrong[some] = judged_labels(q[some], labels[some], state.noise[fold], state.swaps[fold])
    return q.argmax(axis=1), q.max(axis=1), given, wrong


def judged_labels(
    q: NDArray[np.float64], labels: NDArray[np.int64], noise: float, factors: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Label quality, and probability that the label is wrong, (n,) each.

    Args:
        q: (n, K) label posteriors.
        labels: (n,) given labels.
        noise: Probability that a label is any label at all.
        factors: (K, K) of `fit_swaps`.
    """
    mine, stray = q[np.arange(len(q)), labels], noise / q.shape[1]
    others = swapped_share(q, labels, factors)
    quality = mine / np.maximum(mine + others, FLOOR)
    return quality, stray * others / np.maximum(stray * others + (1 - noise + stray) * mine, FLOOR**2)


def suspected_labels(
    posterior: LabelPosterior, labels: NDArray[np.int64], errors: NDArray[np.int8], *, is_train: bool = False
) -> NDArray[np.bool_]:
    """(N,) units of code C01: wrong, q points elsewhere, and the label is rather wrong than a draw from q.

    A network fits the wrong labels it was trained on: in the train split its last word does not count, and
    the worst labels are suspected, about as many as are wrong.
    """
    bad = posterior.wrong > 0.5 if posterior.limit is None else posterior.given <= posterior.limit
    asked = (labels >= 0) & (posterior.best != labels) & bad
    return np.asarray(asked if is_train else asked & (errors == 1))
