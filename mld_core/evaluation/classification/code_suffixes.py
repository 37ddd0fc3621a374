"""Suffixes of classification codes that need the analysis: `|` confused with, `**` features know better."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import ALEATORIC, CRITICAL, HOTSPOT
from mld_core.evaluation.codes.notation import classification_code

SHARE = 0.15
LISTED = 4


def close_classes(counts: NDArray[np.floating]) -> NDArray[np.int32]:
    """(N, 4) classes that hold at least 15 % of a unit's neighbours, largest share first; -1 = none.

    Args:
        counts: (N, K) neighbours of each label.

    Example:
        >>> close_classes(np.array([[8, 20, 0, 4]])).tolist()
        [[1, 0, -1, -1]]
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-share, axis=1, kind="stable")[:, :LISTED]
    made = np.where(np.take_along_axis(share, order, axis=1) >= SHARE, order, -1)
    pad = LISTED - made.shape[1]
    return np.pad(made, ((0, 0), (0, max(pad, 0))), constant_values=-1).astype(np.int32)


def suffixed_codes(
    category: NDArray[np.int8],
    labels: NDArray[np.int64],
    prediction: NDArray[np.int64],
    close: NDArray[np.int32],
    plausible_label: NDArray[np.int64],
) -> NDArray[np.object_]:
    """Error codes with their suffixes.

    In category hotspot the prediction is followed by the other classes that hold at least 15 % of the
    neighbours, at most 4 classes in all; in critical and aleatoric hotspots a wrong unit whose label is the
    most plausible one ends in `**`.

    Args:
        category: (N,) category numbers, -1 where unlabelled.
        labels: (N,) true classes, -1 where unlabelled.
        prediction: (N,) predicted classes, -1 where the logits were not finite.
        close: (N, 4) from `close_classes`.
        plausible_label: (N,) argmax of the label posterior.

    Returns:
        (N,) texts, None where unlabelled.

    Example:
        >>> close = np.array([[7, 1, -1, -1]] * 2)
        >>> labels, said = np.array([3, 9]), np.array([7, 7])
        >>> suffixed_codes(np.array([2, 4], np.int8), labels, said, close, labels).tolist()
        ['CLS3->7|1', 'CLS9->7**']
    """
    knows = np.isin(category, (CRITICAL, ALEATORIC)) & (prediction != labels) & (plausible_label == labels)
    listed = np.where((category == HOTSPOT)[:, None], close, -1)
    key = np.column_stack([labels, prediction, knows, listed]).astype(np.int64)
    distinct, where = np.unique(key, axis=0, return_inverse=True)
    names = np.empty(len(distinct), object)
    for place, (t, y, plausible, *others) in enumerate(distinct.tolist()):
        if t >= 0:
            kept = [one for one in others if one not in (-1, y)][: LISTED - 1]
            names[place] = classification_code(
                t, None if y < 0 else y, confused_with=kept, plausible=bool(plausible)
            )
    return names[where.reshape(-1)]
