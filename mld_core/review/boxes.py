"""The boxes of a sample with what people said of them: moved, of another class, taken away, added."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.records.store.verdict import Verdict, same_place

BOX_KEYS = ("boxes", "bboxes", "gt_boxes", "gt_bboxes", "boxes_3d", "gt_boxes_3d", "gt_bboxes_3d")
CLASS_KEYS = ("labels", "gt_labels", "class_labels", "classes", "labels_3d", "gt_labels_3d", "gt_names")
"""Members of a target, in the order they are looked for."""

OF_EACH = frozenset(
    {"area", "iscrowd", "is_crowd", "difficult", "ignore", "truncated", "occluded", "masks", "keypoints"}
)
"""Members with a value of each box, as data sets of boxes call them."""

FILLED = frozenset({"area", "iscrowd", "is_crowd", "difficult", "ignore", "truncated", "occluded"})
"""Those of them whose value is known of a box that is added: its area, and no."""

OF_IMAGE = frozenset(
    {"image_id", "img_id", "orig_size", "size", "image_size", "img_shape", "ori_shape"}
    | {"image", "img", "images", "inputs", "points", "pixel_values"}
)

Boxes = NDArray[np.float64]


def truths_of(
    store: Store, run: RunKey, dataset_type: str, said: Mapping[str, Collection[Verdict]]
) -> dict[str, Boxes]:
    """The true boxes of the newest records of samples in which boxes were drawn, as verdicts name them."""
    wanted = {name for name, all_said in said.items() if any(one.kind == "missing" for one in all_said)}
    if not wanted:
        return {}
    found: dict[str, Boxes] = {}
    for item in select(store, run, dataset_type=dataset_type, n_epoch="latest"):
        boxes: dict[tuple[int, int], list[tuple[int, list[float]]]] = {}
        for one in item.table("truths", ["rank_", "unit", "gt_idx", "box"]).to_pylist():
            boxes.setdefault((one["rank_"], one["unit"]), []).append((one["gt_idx"], one["box"]))
        for row in item.table("samples").to_pylist():
            if row["input_id"] in wanted:
                own = [box for _, box in sorted(boxes.get((row["rank_"], row["unit"]), []))]
                found[str(row["input_id"])] = _original(np.array(own, np.float64), row.get("affine"))
    return found


def _original(box: Boxes, affine: Sequence[float] | None) -> Boxes:
    """2D boxes in pixels of the original image: the upright boxes around their mapped corners."""
    if affine is None or box.ndim != 2 or box.shape[1] != 4:
        return box
    matrix = np.array(affine, np.float64).reshape(2, 3)
    corners = np.stack([box[:, [0, 1]], box[:, [2, 1]], box[:, [2, 3]], box[:, [0, 3]]], axis=1)
    mapped = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([mapped.min(axis=1), mapped.max(axis=1)], axis=1)


class Target:
    """The part of a sample that holds its boxes.

    Attributes:
        boxes: (N, D) as the data set has them.

    Raises:
        ValueError: Where boxes or labels stand in the sample is ambiguous.
    """

    def __init__(self, sample: Any, place: int | None, boxes_key: str | None, label_key: str | None) -> None:
        self._sample = sample
        self._place = place
        self._target: Mapping[str, Any] = sample if self._place is None else sample[self._place]
        self._boxes_key = boxes_key or _only(self._target, BOX_KEYS, "boxes")
        self._label_key = label_key or _only(self._target, CLASS_KEYS, "labels")
        self.boxes = np.asarray(_plain(self._target[self._boxes_key]), np.float64)
        if self.boxes.size == 0:
            self.boxes = self.boxes.reshape(0, 0)
        self._labels = np.asarray(_plain(self._target[self._label_key]))

    @classmethod
    def of(cls, sample: Any, boxes_key: str | None = None, label_key: str | None = None) -> Target | None:
        """The target of a sample; None where it has none with boxes."""
        keys = BOX_KEYS if boxes_key is None else (boxes_key,)
        parts: dict[int | None, Any] = {None: sample} if isinstance(sample, Mapping) else {}
        parts |= dict(enumerate(sample)) if isinstance(sample, list | tuple) else {}
        for place, part in parts.items():
            if isinstance(part, Mapping) and any(key in part for key in keys):
                return cls(sample, place, boxes_key, label_key)
        return None

    def unlike(self, said: Verdict, recorded: Boxes | None) -> str:
        """Why a verdict does not fit; empty where it does.

        Args:
            said: On a box of this sample.
            recorded: The true boxes of the sample as recorded, for one that was drawn anew.
        """
        if said.truth is None:
            return self._unlike_records(recorded)
        if said.truth >= len(self.boxes):
            return f"the data set has {len(self.boxes)} boxes"
        there = self.boxes[said.truth].tolist()
        if said.seen is not None and not same_place(said.seen, there[: len(said.seen)]):
            return f"the reviewer saw it at {list(said.seen)}, the data set has it at {there}"
        if said.given is not None and self._labels[said.truth] != said.given:
            return f"the reviewer saw class {said.given}, the data set has {self._labels[said.truth]}"
        return self._unclear(OF_EACH) if said.kind == "nothing" else ""

    def _unclear(self, known: Collection[str]) -> str:
        """Members of which it is not known what they would be with a box more or less, in words."""
        n = len(self.boxes)
        unclear = {
            name
            for name, value in self._target.items()
            if name not in {*known, *OF_IMAGE, self._boxes_key, self._label_key}
            and (
                name in OF_EACH
                or (hasattr(value, "__len__") and not isinstance(value, str) and len(value) == n)
            )
        }
        names = ", ".join(sorted(map(str, unclear)))
        return f"what {names} would be with another number of boxes is not known" if unclear else ""

    def _unlike_records(self, recorded: Boxes | None) -> str:
        unclear = self._unclear(FILLED)
        if unclear:
            return unclear
        if recorded is None or len(recorded) != len(self.boxes):
            return "the records have other true boxes than the data set"
        pairs = zip(recorded.tolist(), self.boxes.tolist(), strict=True)
        if not all(same_place(one, there[: len(one)]) for one, there in pairs):
            return "the records have the true boxes elsewhere than the data set"
        return ""

    def corrected(self, said: Sequence[Verdict]) -> Any:
        """The sample with its boxes as people said, of the same types; the sample inside stays as it is."""
        boxes, labels = self.boxes.copy(), self._labels.copy()
        keep = np.ones(len(boxes), np.bool_)
        for one in said:
            if one.truth is None or self.unlike(one, None):
                continue  # added below; or apply() has named it, or the data set was changed since
            if one.kind == "nothing":
                keep[one.truth] = False
            if one.right is not None:
                boxes[one.truth, : len(one.right)] = one.right
            if one.label is not None:
                labels[one.truth] = one.label
        added = [one for one in said if one.kind == "missing"]
        width = boxes.shape[1] or max((len(one.box or ()) for one in added), default=0)
        more = np.zeros((len(added), width))
        for row, one in enumerate(added):
            more[row, : len(one.box or ())] = one.box
        made = dict(self._target)
        drawn = np.concatenate([boxes[keep].reshape(-1, width), more])
        for name in OF_EACH & made.keys():
            rest = [value for value, kept in zip(_plain(made[name]), keep, strict=True) if kept]
            made[name] = _like(made[name], [*rest, *[0] * len(added)])
        if "area" in made and drawn.shape[1] == 4:
            made["area"] = _like(made["area"], (drawn[:, 2:] - drawn[:, :2]).prod(axis=1).tolist())
        made[self._boxes_key] = _like(made[self._boxes_key], drawn.tolist())
        classes = [*labels[keep].tolist(), *(one.label for one in added)]
        made[self._label_key] = _like(made[self._label_key], classes)
        return self._with(made)

    def _with(self, target: dict[str, Any]) -> Any:
        if self._place is None:
            return target
        changed = list(self._sample)
        changed[self._place] = target
        return changed if isinstance(self._sample, list) else tuple(changed)


def _only(target: Mapping[str, Any], keys: Sequence[str], what: str) -> str:
    found = [key for key in keys if key in target]
    if len(found) != 1:
        raise ValueError(
            f"a target with the members {sorted(map(str, target))}: which are the {what}? give "
            f"{'boxes' if what == 'boxes' else 'label'}_key=... (looked for {', '.join(keys)})"
        )
    return found[0]


def _plain(value: Any) -> Any:
    """Numbers as lists, of a tensor, an array or a list."""
    return value.tolist() if hasattr(value, "tolist") else value


def _like(given: Any, values: list[Any]) -> Any:
    """Values in the form of others: a tensor, an array or a list."""
    if hasattr(given, "new_tensor"):
        made = given.new_tensor(values)
        return made.reshape(-1, given.shape[-1]) if not values and given.ndim > 1 else made
    if isinstance(given, np.ndarray):
        made = np.asarray(values, given.dtype)
        return made.reshape(-1, given.shape[-1]) if not values and given.ndim > 1 else made
    return type(given)(values) if isinstance(given, list | tuple) else values
