"""det3d: the original CenterPoint and CenterFormer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from mld_core.adapters.base import Call, Truth
from mld_core.adapters.detection3d.frames import NativeFrame
from mld_core.adapters.detection3d.heads.base import has
from mld_core.adapters.detection3d.layouts import Layout, names_of, points_of, tensor, truth_of
from mld_core.adapters.detection3d.openpcdet import frame_ids, truth_part
from mld_core.adapters.outputs import as_array
from mld_core.adapters.settings import read


class Det3d(Layout):
    """`forward(example, return_loss)`; yaw is the LAST column of a predicted box with velocity."""

    name: ClassVar[str] = "det3d"
    head_paths: ClassVar[tuple[str, ...]] = ("single_det.bbox_head", "bbox_head")
    range_paths: ClassVar[tuple[str, ...]] = (
        "reader.pc_range",
        "single_det.reader.pc_range",
        "voxel_generator.range",
        "cfg.voxel_generator.range",
    )

    @staticmethod
    def fits(model: Any) -> bool:
        """reader, backbone, neck and bbox_head, or (two-stage) single_det and roi_head; takes an example.

        MMDetection3D's methods (`simple_test`, `forward_test`) are in det3d's base too, and do nothing.
        """
        one = has(model, "reader", "backbone", "neck", "bbox_head")
        if has(model, "data_preprocessor") or not (
            one or has(model, "single_det", "second_stage", "roi_head")
        ):
            return False
        return not has(model, "simple_test") or _takes_an_example(model)

    def roi_head(self) -> Any:
        """`model.roi_head` of two-stage detectors."""
        return read(self.model, "roi_head")

    def frames(self, output: Any) -> list[NativeFrame] | None:
        """`box3d_lidar`, `scores`, `label_preds` (from 0)."""
        if not isinstance(output, (list, tuple)) or not output:
            return None
        if not all(isinstance(part, Mapping) and "box3d_lidar" in part for part in output):
            return None
        found = []
        for part in output:
            boxes = tensor(part["box3d_lidar"])
            name = "det3d_velocity" if boxes.ndim == 2 and boxes.shape[1] == 9 else "det3d"
            found.append(NativeFrame(boxes, tensor(part["scores"]), tensor(part["label_preds"]), name))
        return found

    def truths(self, truth: Any) -> list[Truth] | None:
        """`gt_boxes_and_cls` (B, M, 10): x, y, z, w, l, h, yaw, vx, vy, class from 1; 0 fills up."""
        rows = truth.get("gt_boxes_and_cls") if isinstance(truth, Mapping) else None
        if rows is None or getattr(rows, "ndim", 0) != 3 or rows.shape[-1] != 10:
            return None
        frames = []
        names = frame_ids(truth, len(rows))
        for frame, (table, name) in enumerate(zip(as_array(rows), names, strict=True)):
            real = table[table[:, -1] > 0]
            # There yaw comes before the velocity; in predictions it comes after.
            boxes = real[:, [0, 1, 2, 3, 4, 5, 7, 8, 6]]
            points = points_of(truth, frame, boxes, "det3d_velocity")
            frames.append(truth_of(boxes, real[:, 9] - 1, "det3d_velocity", name, n_points=points))
        return frames

    def truth_in(self, call: Call) -> Any:
        """The example."""
        example = call.args[0] if call.args else call.kwargs.get("example")
        return truth_part(example, "gt_boxes_and_cls")

    def native(self, batch: Mapping[str, Any], training: bool) -> Any:
        """The example, and whether losses are wanted."""
        return (batch,), {"return_loss": training}

    def class_names(self) -> list[str] | None:
        """Of the model; heads have them by task."""
        return names_of(self.model)


def _takes_an_example(model: Any) -> bool:
    try:
        names = list(inspect.signature(type(model).forward).parameters)
    except (AttributeError, TypeError, ValueError):
        return False
    return names[1:2] == ["example"]
