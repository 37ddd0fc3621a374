"""Non-maximum suppression: exact greedy, on numpy arrays or torch tensors of any device.

The highest score is kept, what overlaps it by more than the threshold goes, and so on. Equal scores are taken
in index order (NaN scores last). With labels, only boxes of one label suppress each other. Rows that are no
boxes (NaN, negative sizes) overlap nothing: they neither suppress nor are suppressed; drop them with
`iou.invalid_boxes`.

Results are indices into the input, in descending order of score, int64, of the input's kind and on its
device. All engines keep the same rows, unless an IoU meets a threshold to within rounding (1e-6).
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from mld_core.geometry.iou import BEV, BOX_3D, XYXY, footprints
from mld_core.geometry.kernels import nms_numpy
from mld_core.geometry.kernels.arrays import A, Backend, NmsMode, is_tensor, prepare, require_boxes

# One number for all, or one per label: a mapping, or a sequence indexed by label.
Threshold: TypeAlias = float | Mapping[int, float] | Sequence[float]


def nms(
    boxes: A,
    scores: A,
    labels: A | None = None,
    iou_threshold: Threshold = 0.5,
    max_output: int | None = None,
    *,
    backend: Backend | None = None,
) -> A:
    """Greedy NMS of axis-aligned boxes.

    Args:
        boxes: (N, 4) rows [x1, y1, x2, y2], any unit.
        scores: (N,).
        labels: (N,) integers; None: one class.
        iou_threshold: a box goes if its IoU with a kept one is above this; a number, or one per label.
        max_output: at most so many boxes, all labels together.
        backend: force an engine.

    Returns:
        Indices (K,), by descending score.

    Raises:
        TypeError: numpy and torch mixed.
        ValueError: wrong shapes, a threshold outside [0, 1] or missing for a label, a negative `max_output`.

    >>> import numpy as np
    >>> boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10.0]])
    >>> nms(boxes, np.array([0.8, 0.9, 0.7]))  # 0 and 1 overlap by 9 / 11
    array([1, 2])
    >>> nms(boxes, np.array([0.8, 0.9, 0.7]), labels=np.array([0, 1, 0]))
    array([1, 0, 2])
    """
    require_boxes(boxes, "boxes", (4,), XYXY)
    return _greedy(boxes, scores, labels, iou_threshold, max_output, "iou", backend)


def nms_bev(
    boxes: A,
    scores: A,
    labels: A | None = None,
    iou_threshold: Threshold = 0.5,
    max_output: int | None = None,
    *,
    backend: Backend | None = None,
) -> A:
    """Greedy NMS by the IoU of rotated footprints.

    Args:
        boxes: (N, 5) rows [cx, cy, w, l, yaw] or (N, 7) rows [cx, cy, cz, w, l, h, yaw], metres and radians.
        scores: (N,).
        labels: (N,) integers; None: one class.
        iou_threshold: as in `nms`.
        max_output: as in `nms`.
        backend: force an engine.

    Returns:
        Indices (K,), by descending score.

    Raises:
        TypeError: numpy and torch mixed.
        ValueError: as `nms`.

    >>> import numpy as np
    >>> boxes = np.array([[0, 0, 2, 4, 0.0], [0, 0, 2, 4, 0.1], [0, 0, 2, 4, np.pi / 2]])
    >>> nms_bev(boxes, np.array([0.9, 0.8, 0.7]))  # the crossed box shares a third
    array([0, 2])
    """
    require_boxes(boxes, "boxes", (5, 7), BEV)
    flat: A = footprints(boxes)
    return _greedy(flat, scores, labels, iou_threshold, max_output, "bev", backend)


def nms_3d(
    boxes: A,
    scores: A,
    labels: A | None = None,
    iou_threshold: Threshold = 0.5,
    max_output: int | None = None,
    *,
    backend: Backend | None = None,
) -> A:
    """Greedy NMS by the IoU of upright 3D boxes.

    Args:
        boxes: (N, 7) rows [cx, cy, cz, w, l, h, yaw], metres and radians, cz the gravity centre.
        scores: (N,).
        labels: (N,) integers; None: one class.
        iou_threshold: as in `nms`.
        max_output: as in `nms`.
        backend: force an engine.

    Returns:
        Indices (K,), by descending score.

    Raises:
        TypeError: numpy and torch mixed.
        ValueError: as `nms`.

    >>> import numpy as np
    >>> boxes = np.array([[0, 0, 0, 2, 4, 1.5, 0.0], [0, 0, 0.2, 2, 4, 1.5, 0.0], [0, 0, 3, 2, 4, 1.5, 0.0]])
    >>> nms_3d(boxes, np.array([0.9, 0.8, 0.7]))
    array([0, 2])
    """
    require_boxes(boxes, "boxes", (7,), BOX_3D)
    return _greedy(boxes, scores, labels, iou_threshold, max_output, "3d", backend)


def nms_circle(
    boxes: A,
    scores: A,
    labels: A | None = None,
    distance_threshold: Threshold = 1.0,
    max_output: int | None = None,
    *,
    backend: Backend | None = None,
) -> A:
    """Greedy NMS by the distance of the centres in the ground plane (CenterPoint on nuScenes).

    Args:
        boxes: (N, >= 2) rows that begin with [cx, cy], metres.
        scores: (N,).
        labels: (N,) integers; None: one class.
        distance_threshold: a box goes if its centre is at most this far from a kept one's; metres, a number
            or one per label. CenterPoint compares `min_radius` with squared distances: pass its square root.
        max_output: as in `nms`.
        backend: force an engine.

    Returns:
        Indices (K,), by descending score.

    Raises:
        TypeError: numpy and torch mixed.
        ValueError: wrong shapes, a negative threshold or none for a label, a negative `max_output`.

    >>> import numpy as np
    >>> centers = np.array([[0, 0.0], [0.6, 0.8], [3, 0]])
    >>> nms_circle(centers, np.array([0.5, 0.9, 0.7]), distance_threshold=1.0)
    array([1, 2])
    """
    if boxes.ndim != 2 or boxes.shape[1] < 2:
        raise ValueError(f"boxes has shape {tuple(boxes.shape)}; pass (N, 2 or more) rows [cx, cy, ...]")
    return _greedy(boxes, scores, labels, distance_threshold, max_output, "circle", backend)


def _greedy(
    boxes: A,
    scores: A,
    labels: A | None,
    threshold: Threshold,
    max_output: int | None,
    mode: NmsMode,
    backend: Backend | None,
) -> A:
    """NMS by any engine: rows in score order go in, positions in that order come out."""
    call = prepare((boxes,), backend)
    for what, given in (("scores", scores), ("labels", labels)):
        if given is None:
            continue
        if is_tensor(given) != is_tensor(boxes):
            raise TypeError(
                f"boxes is a {type(boxes).__name__}, {what} a {type(given).__name__}; pass one kind"
            )
        if tuple(given.shape) != (len(boxes),):
            raise ValueError(f"{what} has shape {tuple(given.shape)}; pass one per box: ({len(boxes)},)")
    engine: Any = nms_numpy
    ordered: Any = _in_order
    if call.engine == "torch":
        from mld_core.geometry.kernels import nms_torch as engine

        ordered = _tensors_in_order
    elif call.engine == "numba":
        from mld_core.geometry.kernels import engine_numba as engine
    order, codes, limits = ordered(
        scores, labels, threshold, "distance_threshold" if mode == "circle" else "iou_threshold"
    )
    if max_output is not None and max_output < 0:
        raise ValueError(f"max_output is {max_output}; pass a count, or None for no limit")
    most = len(boxes) if max_output is None else min(max_output, len(boxes))
    kept: A = call.give_back(order[engine.keep(call.arrays[0][order], codes, limits, most, mode)])
    return kept


def _in_order(scores: Any, labels: Any, threshold: Threshold, name: str) -> tuple[Any, Any, Any]:
    """The order of the scores, and class codes (empty: one class) and float64 thresholds in that order."""
    values = prepare((scores,), "numpy" if not is_tensor(scores) else None).arrays[0]
    order = np.argsort(-np.asarray(values), kind="stable")
    if labels is None:
        return order, np.zeros(0, np.int32), np.full(len(order), _limits(threshold, None, name))
    known, codes = np.unique(np.asarray(labels), return_inverse=True)
    codes = codes.reshape(-1)[order].astype(np.int32)
    return order, codes, _limits(threshold, known, name)[codes]


def _tensors_in_order(scores: Any, labels: Any, threshold: Threshold, name: str) -> tuple[Any, Any, Any]:
    """As `_in_order` on the tensors' device; codes are None for one class."""
    import torch

    order = torch.argsort(-scores.detach().double(), stable=True)
    if labels is None or isinstance(threshold, (int, float)):
        # The usual case needs no look at the labels from the host.
        limit = float(_limits(threshold, None, name)[0])
        limits = torch.full((len(order),), limit, dtype=torch.float64, device=scores.device)
        return order, None if labels is None else labels[order], limits
    known, codes = torch.unique(labels, return_inverse=True)
    limits = torch.from_numpy(_limits(threshold, known.cpu().numpy(), name)).to(scores.device)
    return order, codes[order], limits[codes[order]]


def _limits(threshold: Threshold, known: Any, name: str) -> Any:
    """Threshold of each known label, or one for all where there are no labels, float64."""
    if isinstance(threshold, (int, float)):
        limits = np.full(1 if known is None else len(known), float(threshold))
    elif known is None:
        raise ValueError(
            f"{name} holds one value per label, but no labels were given; pass labels or a number"
        )
    else:
        has = threshold if isinstance(threshold, Mapping) else range(len(threshold))
        missing = [int(k) for k in known if int(k) not in has]
        if missing:
            raise ValueError(f"{name} has no value for label(s) {missing[:5]}; add them")
        limits = np.array([float(threshold[int(k)]) for k in known])
    top = 1.0 if name == "iou_threshold" else np.inf
    wrong = limits[~((limits >= 0) & (limits <= top))]
    if len(wrong):
        raise ValueError(f"{name} is {wrong[0]}; pass a value from 0 to {top}")
    return limits
