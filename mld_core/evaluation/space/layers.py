"""Label ambiguity of every unit in every recorded layer's own space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space import space
from mld_core.evaluation.space.arrays import SplitArrays
from mld_core.evaluation.space.cells import AMBIGUITY_KS, Ambiguity, ambiguity_of
from mld_core.evaluation.space.neighbourhood import Nearest, Neighbourhood, Surroundings, look
from mld_core.evaluation.space.neighbours import Base, make_base
from mld_core.evaluation.statistics.blocks import rows_at_once, spans

SHARE = 0.15
LISTED = 4


@dataclass(frozen=True)
class LayerView:
    """What the labels around a unit look like.

    Attributes:
        layers: One for each layer, earliest first.
        pooled: In the pooled space.
        close: (N, 4) classes with at least 15 % of the pooled neighbours, -1 where fewer.
    """

    layers: tuple[Ambiguity, ...]
    pooled: Ambiguity
    close: NDArray[np.int32]


def close_classes(counts: NDArray[np.floating]) -> NDArray[np.int32]:
    """(N, 4) classes that hold at least 15 % of a unit's neighbours, largest share first; -1 = none.

    Args:
        counts: (N, K) neighbours of each label.

    Example:
        >>> close_classes(np.array([[8, 20, 0, 4]])).tolist()
        [[1, 0, -1, -1]]
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    made, here = np.full((len(share), LISTED), -1, np.int32), np.arange(len(share))
    for place in range(min(LISTED, share.shape[1])):
        # A few largest ones, smallest class on a tie: no need to sort them all.
        best = share.argmax(axis=1)
        made[:, place] = np.where(share[here, best] >= SHARE, best, -1)
        share[here, best] = -1
    return made


def look_at_layers(
    arrays: SplitArrays,
    fitted: space.Space,
    around: Surroundings,
    groups: NDArray[np.int64],
    known: NDArray[np.int64],
    workers: Workers,
) -> LayerView:
    """Count the labels of the nearest labelled units, 32 at most, in each layer's own 32 coordinates.

    Where one layer is recorded the pooled neighbours are its neighbours: no second search. With cells in
    place of neighbours (above five million units) the pooled cells stand for every layer.
    """
    labels = arrays.labels[known]
    soft = None if arrays.soft_labels is None else _soft_weights(arrays, known)
    pooled, close = count_labels(around.around, labels, arrays.n_class, arrays.rows, workers, soft)
    if len(fitted.names) == 1 or around.base is None:
        return LayerView((pooled,), pooled, close)
    made = []
    wide = AMBIGUITY_KS[-1]
    for name in fitted.names:
        points = space.project(fitted, arrays.layers, workers, layer=name)
        base = _layer_base(points, groups, known, wide, around.base, workers)
        own = look(points, groups, base, wide, workers)
        made.append(count_labels(own, labels, arrays.n_class, arrays.rows, workers, soft)[0])
    return LayerView(tuple(made), pooled, close)


def _layer_base(
    points: NDArray[np.float32],
    groups: NDArray[np.int64],
    known: NDArray[np.int64],
    k: int,
    pooled: Base,
    workers: Workers,
) -> Base:
    # Exact in the layer where the pooled search was exact.
    limit = len(known) if pooled.lists is None else 0
    everyone = len(known) == len(points)
    own, codes = (points, groups) if everyone else (points[known], groups[known])
    return make_base(own, codes, workers, k=k, exact_limit=limit)


def count_labels(
    around: Neighbourhood | Nearest,
    labels: NDArray[np.int64],
    n_class: int,
    rows: int,
    workers: Workers,
    soft: NDArray[np.float32] | None = None,
) -> tuple[Ambiguity, NDArray[np.int32]]:
    """Ambiguity of every unit from the labels, or soft labels, around it, and the classes close to it.

    Args:
        around: Surroundings of `rows` units among M labelled ones.
        labels: (M,) labels.
        n_class: Number of classes.
        rows: Number of units.
        workers: Open pool.
        soft: (M, K) label distributions that stand for the labels, or None.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=n_class) if soft is None else soft.sum(axis=0)

    def counted(k: int, of: NDArray[np.int64]) -> NDArray[np.float32]:
        if soft is None:
            return around.label_counts(labels, n_class, k, of)
        return around.mixed_counts(soft, k, of)

    def one(span: slice) -> tuple[Ambiguity, NDArray[np.int32]]:
        here = np.arange(span.start, span.stop)
        return ambiguity_of(counted, sizes, here), close_classes(counted(AMBIGUITY_KS[-1], here))

    parts = list(workers.map(one, spans(rows, rows_at_once(n_class))))
    columns = zip(*(vars(part).values() for part, _ in parts), strict=True)
    return Ambiguity(*map(np.concatenate, columns)), np.concatenate([close for _, close in parts])


def _soft_weights(arrays: SplitArrays, known: NDArray[np.int64]) -> NDArray[np.float32]:
    """(M, K) soft labels, hard ones as one-hot rows."""
    assert arrays.soft_labels is not None
    weights = np.asarray(arrays.soft_labels[known], dtype=np.float32)
    hard = np.isnan(weights).any(axis=1)
    labels = arrays.labels[known]
    weights[hard] = 0
    there = np.flatnonzero(hard & (labels >= 0))
    weights[there, labels[there]] = 1
    return weights
