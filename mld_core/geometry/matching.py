"""Which detection found which truth: greedy by score, or optimal, from an IoU or distance matrix.

Matrices are (detections, truths). With `distance=False` (IoU and the like) a pair may match if its entry
is at least the threshold, with `distance=True` if it is below it; NaN never matches. Truths may be marked
`ignore` (a detection that finds one counts neither as right nor as wrong) and `crowd` (ignored, and found
by any number of detections; fill a crowd's column with `iou.box_ioa`, as COCO does: `coco_overlaps`). A
truth that counts is preferred to an ignored one, however well the latter fits.

Sources: pycocotools `COCOeval.evaluateImg` (Lin et al., "Microsoft COCO", 2014), nuScenes devkit
`detection.algo.accumulate` (Caesar et al., 2020), scipy's `linear_sum_assignment` (Crouse, 2016).
"""

import sys
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from mld_core.geometry.iou import box_ioa, box_iou
from mld_core.geometry.kernels.arrays import A, is_tensor

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Matches(Generic[A]):
    """Who found whom.

    Attributes:
        truth: (D,) int64, the truth each detection matched, -1 for none.
        detection: (G,) int64, the detection that matched each truth, -1 for none; the best scored one of
            a crowd.
        ignored: (D,) bool, detections that count neither as right nor as wrong: they matched an ignored
            truth.
    """

    truth: A
    detection: A
    ignored: A


def greedy_match(
    matrix: A,
    scores: A,
    threshold: float,
    *,
    distance: bool = False,
    ignore: A | None = None,
    crowd: A | None = None,
) -> Matches[A]:
    """Match by descending score: each detection takes the best truth that is still free.

    This is COCO's rule for IoU (of equally good truths the later one) and nuScenes' rule for centre
    distance (of equally near truths the first). Equal scores are taken in index order.

    Args:
        matrix: (D, G) IoU or distance.
        scores: (D,).
        threshold: the least IoU that matches; or, with `distance`, the bound the distance must stay below.
        distance: whether smaller entries are better.
        ignore: (G,) bool, truths to ignore.
        crowd: (G,) bool, truths to ignore that any number of detections may match.

    Returns:
        Arrays of the matrix's kind and device.

    Raises:
        ValueError: shapes that do not fit.

    >>> import numpy as np
    >>> matrix = np.array([[0.6, 0.7], [0.8, 0.0], [0.0, 0.6]])
    >>> greedy_match(matrix, np.array([0.9, 0.8, 0.7]), 0.5).truth
    array([ 1,  0, -1])
    """
    fit, ignored_truths, many = _inputs(matrix, threshold, distance, ignore, crowd)
    marks = _host(scores)
    if marks.shape != (len(fit),):
        raise ValueError(f"scores has shape {marks.shape}; pass one per row of the matrix: ({len(fit)},)")
    truth, detection = np.full(fit.shape[0], -1), np.full(fit.shape[1], -1)
    free = np.ones(fit.shape[1], bool)
    for d in np.argsort(-marks.astype(np.float64), kind="stable"):
        if not np.isfinite(fit[d]).any():
            continue
        row = np.where(free, fit[d], -np.inf)
        counting = np.where(ignored_truths, -np.inf, row)
        if np.isfinite(counting).any():
            row = counting
        best = int(row.argmax()) if distance else len(row) - 1 - int(row[::-1].argmax())
        if row[best] == -np.inf:
            continue
        truth[d] = best
        detection[best] = d if detection[best] < 0 else detection[best]
        free[best] = many[best]
    return _matches(matrix, truth, detection, ignored_truths)


def optimal_match(
    matrix: A,
    threshold: float,
    *,
    distance: bool = False,
    ignore: A | None = None,
    crowd: A | None = None,
) -> Matches[A]:
    """Match as many pairs as the threshold allows and, among those matchings, the one with the best sum.

    Truths that count are matched first; detections left over are then matched to ignored truths, and
    those still left over to the crowd they fit best.

    Args:
        matrix: (D, G) IoU or distance.
        threshold: as in `greedy_match`.
        distance: whether smaller entries are better.
        ignore: (G,) bool, truths to ignore.
        crowd: (G,) bool, truths to ignore that any number of detections may match.

    Returns:
        Arrays of the matrix's kind and device.

    Raises:
        ValueError: shapes that do not fit.

    >>> import numpy as np
    >>> optimal_match(np.array([[0.6, 0.7], [0.0, 0.9], [0.8, 0.0]]), 0.5).truth  # 0.9 + 0.8, not 0.7 + 0.8
    array([-1,  1,  0])
    """
    fit, ignored_truths, many = _inputs(matrix, threshold, distance, ignore, crowd)
    truth, detection = np.full(fit.shape[0], -1), np.full(fit.shape[1], -1)
    for columns in (np.flatnonzero(~ignored_truths), np.flatnonzero(ignored_truths & ~many)):
        rows = np.flatnonzero(truth < 0)
        for d, g in zip(*_assign(fit[np.ix_(rows, columns)]), strict=True):
            truth[rows[d]], detection[columns[g]] = columns[g], rows[d]
    crowds = np.flatnonzero(many)
    if len(crowds):
        for d in np.flatnonzero(truth < 0):
            best = int(crowds[fit[d, crowds].argmax()])
            if fit[d, best] > -np.inf:
                truth[d] = best
                detection[best] = d if detection[best] < 0 else detection[best]
    return _matches(matrix, truth, detection, ignored_truths)


def coco_overlaps(detections: A, truths: A, crowd: A | None = None) -> A:
    """The matrix COCO matches by: IoU, and for crowd regions the share of the detection inside the region.

    Args:
        detections: (D, 4) xyxy rows.
        truths: (G, 4) xyxy rows.
        crowd: (G,) bool.

    Returns:
        (D, G) in [0, 1].

    >>> import numpy as np
    >>> truths = np.array([[0, 0, 4, 4.0], [0, 0, 4, 4.0]])
    >>> coco_overlaps(np.array([[0, 0, 2, 2.0]]), truths, np.array([False, True]))
    array([[0.25, 1.  ]])
    """
    overlaps: Any = box_iou(detections, truths)
    if crowd is not None:
        overlaps[:, crowd] = box_ioa(detections, truths[crowd])
    result: A = overlaps
    return result


def _assign(fit: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the best matching over finite entries: most pairs first, then the largest sum."""
    from scipy.optimize import linear_sum_assignment

    allowed = fit > -np.inf
    if not allowed.any():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    low, high = fit[allowed].min(), fit[allowed].max()
    # Every allowed pair is worth more than all that rearranging the others can gain.
    base = (high - low + 1.0) * (min(fit.shape) + 1) - low
    rows, columns = linear_sum_assignment(np.where(allowed, fit + base, 0.0), maximize=True)
    kept = allowed[rows, columns]
    return rows[kept], columns[kept]


def _inputs(
    matrix: Any, threshold: float, distance: bool, ignore: Any, crowd: Any
) -> tuple[npt.NDArray[np.float64], Bools, Bools]:
    """Entries (larger is better, -inf: may not match), which truths are ignored, which are crowds."""
    if matrix.ndim != 2:
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; pass (detections, truths)")
    entries = _host(matrix).astype(np.float64)
    allowed = entries < threshold if distance else entries >= threshold
    flags = []
    for name, given in (("ignore", ignore), ("crowd", crowd)):
        flag = np.zeros(entries.shape[1], bool) if given is None else _host(given).astype(bool)
        if flag.shape != (entries.shape[1],):
            raise ValueError(f"{name} has shape {flag.shape}; pass one per truth: ({entries.shape[1]},)")
        flags.append(flag)
    return np.where(allowed, -entries if distance else entries, -np.inf), flags[0] | flags[1], flags[1]


def _host(values: Any) -> npt.NDArray[Any]:
    return np.asarray(values.detach().cpu() if is_tensor(values) else values)


def _matches(matrix: A, truth: Any, detection: Any, ignored_truths: Bools) -> Matches[A]:
    ignored = np.append(ignored_truths, False)[truth]
    arrays: list[Any] = [truth.astype(np.int64), detection.astype(np.int64), ignored]
    if is_tensor(matrix):
        arrays = [sys.modules["torch"].from_numpy(array).to(matrix.device) for array in arrays]
    return Matches(*arrays)
