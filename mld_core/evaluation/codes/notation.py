"""The notation of classification error codes: `CLS{truth}->{prediction}`.

A right unit carries a code too (`CLS0->0`); an unlabelled unit carries none. The suffixes that need the
hotspot analysis (`CLS3->7|1`, `CLS9->7**`) are made by `classification_code` once the classes and the
category are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import ALEATORIC, CRITICAL, HOTSPOT

NO_PREDICTION = "nonfinite"
"""Stands for the prediction where the logits held NaN or infinity: such a unit is wrong and has no class."""


def classification_code(
    truth: int, prediction: int | None, *, confused_with: Sequence[int] = (), plausible: bool = False
) -> str:
    """Write one error code.

    Args:
        truth: The true class, 0-based.
        prediction: The predicted class, or None where the logits were not finite.
        confused_with: Further classes the unit's features are easily confused with, most likely first.
        plausible: True where the internal features point at `truth` although the prediction differs (`**`).

    Example:
        >>> classification_code(3, 7)
        'CLS3->7'
        >>> classification_code(3, 7, confused_with=[1])
        'CLS3->7|1'
        >>> classification_code(9, 7, plausible=True)
        'CLS9->7**'
        >>> classification_code(2, None)
        'CLS2->nonfinite'
    """
    said = NO_PREDICTION if prediction is None else str(prediction)
    others = "".join(f"|{name}" for name in confused_with)
    return f"CLS{truth}->{said}{others}{'**' if plausible else ''}"


def classification_codes(truth: NDArray[np.int64], prediction: NDArray[np.int64]) -> pa.Array:
    """Write the plain codes of many units.

    Args:
        truth: (N,) true classes, -1 where the unit is unlabelled.
        prediction: (N,) predicted classes, -1 where the logits were not finite.

    Returns:
        (N,) Arrow strings, null where the unit is unlabelled.

    Example:
        >>> classification_codes(np.array([0, 3, -1, 2]), np.array([0, 7, 1, -1])).to_pylist()
        ['CLS0->0', 'CLS3->7', None, 'CLS2->nonfinite']
    """
    pairs, where = np.unique(np.stack([truth, prediction], axis=1), axis=0, return_inverse=True)
    names = [None if t < 0 else classification_code(int(t), None if y < 0 else int(y)) for t, y in pairs]
    return pa.array(names, pa.string()).take(pa.array(where.reshape(-1), pa.int64()))


def parse_classification_code(code: str) -> tuple[int, int | None]:
    """Read the true and the predicted class back; the prediction is None for non-finite logits.

    Example:
        >>> parse_classification_code("CLS3->7|1")
        (3, 7)

    Raises:
        ValueError: The text is no classification code.
    """
    head, arrow, tail = code.partition("->")
    said = tail.rstrip("*").partition("|")[0]
    if not (
        arrow and head.startswith("CLS") and head[3:].isdigit() and (said.isdigit() or said == NO_PREDICTION)
    ):
        raise ValueError(
            f"error code {code!r}: expected CLS<truth>-><prediction>, e.g. CLS3->7, CLS3->7|1 or CLS9->7**"
        )
    return int(head[3:]), None if said == NO_PREDICTION else int(said)


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
        close: (N, 4) classes that hold at least 15 % of the neighbours, largest share first, -1 where fewer.
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
            kept = [one for one in others if one not in (-1, y)][: close.shape[1] - 1]
            names[place] = classification_code(
                t, None if y < 0 else y, confused_with=kept, plausible=bool(plausible)
            )
    return names[where.reshape(-1)]
