"""What infos of KITTI say of a frame and its batch does not: difficulty, occlusion, regions, neighbours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from mld_core.adapters.base import Truth, image_box_column
from mld_core.adapters.outputs import as_array
from mld_core.adapters.settings import read
from mld_core.geometry.conventions import to_standard

NEIGHBOURS = frozenset({"van", "person_sitting"})
"""What KITTI ignores beside cars and pedestrians."""

_FACTS = {"difficulty": "difficulty", "occluded": "occlusion", "truncated": "truncation"}
_BY_FRAME: WeakKeyDictionary[Any, tuple[int, dict[str, Any]]] = WeakKeyDictionary()
"""Of data sets that were asked: how many infos they held, and the annotations by the frame's name."""

_DEEPEST = 16


def innermost(dataset: Any) -> Any:
    """The data set within those that repeat or balance it."""
    for _ in range(_DEEPEST):  # one that names itself as its own has no end
        inner = read(dataset, "dataset")
        if inner is None:
            break
        dataset = inner
    return dataset


def annotations_of(dataset: Any, frame: Any) -> Mapping[str, Any]:
    """What `kitti_infos` hold of a frame, {} where they hold nothing of it."""
    dataset = innermost(dataset)
    infos = read(dataset, "kitti_infos")
    if not isinstance(infos, list) or frame is None:
        return {}
    try:
        size, known = _BY_FRAME.get(dataset, (-1, {}))
        if size != len(infos):
            known = {str(one["point_cloud"]["lidar_idx"]): one.get("annos") for one in infos}
            _BY_FRAME[dataset] = len(infos), known
    except (TypeError, KeyError):  # a data set of the user's own; what it does not tell is not known
        return {}
    found = known.get(str(frame))
    return found if isinstance(found, Mapping) and "name" in found else {}


def add_facts(truth: Truth, known: Mapping[str, Any], class_names: Sequence[str] | None) -> None:
    """Adds to a frame's true boxes what its annotations say of them.

    Nothing is added where they are not the boxes of the batch, in its order: names and sizes tell
    (augmentation scales boxes, and takes some from other frames).
    """
    if not known or class_names is None:
        return
    names = np.asarray(known["name"]).astype(str)
    rows = np.flatnonzero(np.isin(names, class_names))
    own = [class_names[label] for label in truth.labels.tolist()]
    # Columns of a data set of the user's own may be missing, or of another length.
    told = {
        key: as_array(known[key]) for key in (*_FACTS, "dimensions", "bbox") if known.get(key) is not None
    }
    told = {key: value[rows] for key, value in told.items() if len(value) == len(names)}
    sizes = told.get("dimensions")  # length, height, width
    if own != names[rows].tolist() or sizes is None:
        return
    if not np.allclose(sizes, truth.boxes[:, [4, 5, 3]], atol=0.01):
        return
    facts = {ours: told[key] for key, ours in _FACTS.items() if key in told}
    if "bbox" in told:
        facts |= image_box_column(told["bbox"], len(rows))
    truth.columns.update({**facts, **truth.columns})


def dont_care(known: Mapping[str, Any]) -> list[list[float]]:
    """Image boxes of the regions in which KITTI's annotators named no objects."""
    rows = np.asarray(known.get("name", ())).astype(str) == "DontCare"
    boxes = known.get("bbox")
    if boxes is None or len(boxes) != len(rows):
        return []
    return [[float(one) for one in box] for box in as_array(boxes)[rows]]


def neighbours(rows: Iterable[tuple[Any, Any, Any]], own: Collection[str]) -> list[dict[str, Any]]:
    """Of annotations (name, camera box, image box) those of `NEIGHBOURS` that are no class of the run.

    KITTI lets a detection that finds one count neither as right nor as wrong, and goes through true boxes in
    their order: `row` is how many of the run's classes stand before it.
    """
    row, found = 0, []
    for name, box, drawn in rows:
        if name in own:
            row += 1
        elif str(name).lower() in NEIGHBOURS:
            found.append({"name": str(name), "row": row, "box": box, "image_box": drawn})
    return found


def neighbours_of(known: Mapping[str, Any], own: Any) -> list[dict[str, Any]] | None:
    """`neighbours` of OpenPCDet's annotations; None where they do not hold what it takes."""
    columns = [known.get(name) for name in ("name", "location", "dimensions", "rotation_y", "bbox")]
    if own is None or any(one is None for one in columns):
        return None
    try:
        names, *sizes, drawn = map(as_array, columns)
        boxes = np.column_stack(sizes)
        return neighbours(zip(names.astype(str).tolist(), boxes, drawn, strict=True), own)
    except (TypeError, ValueError):  # columns of the user's own, of another length
        return None


def in_lidar(found: Sequence[Mapping[str, Any]], lidar2cam: Any) -> list[dict[str, Any]] | None:
    """Neighbours with boxes of the LiDAR's frame; None where they are no boxes or the matrix no way there."""
    try:
        rows = np.array([one["box"] for one in found], np.float64).reshape(-1, 7)
        drawn = np.array([one["image_box"] for one in found], np.float64).reshape(-1, 4)
        boxes, _ = to_standard(rows, "kitti_camera", lidar2cam)
    except (TypeError, ValueError):
        return None
    if not (np.isfinite(boxes).all() and np.isfinite(drawn).all()) or len(boxes) != len(found):
        return None
    return [
        {**one, "box": box, "image_box": flat}
        for one, box, flat in zip(found, boxes.tolist(), drawn.tolist(), strict=True)
    ]
