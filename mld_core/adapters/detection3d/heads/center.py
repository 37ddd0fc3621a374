"""Centre heads: MMDetection3D's and its forks' (A3), OpenPCDet's (A4), VoxelNeXt's (A5), det3d's (A6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.detection3d.frames import NativeFrame, Origin
from mld_core.adapters.detection3d.heads.base import (
    NOTHING,
    Head,
    copied,
    flat_names,
    has,
    last,
    total_classes,
)
from mld_core.adapters.detection3d.heads.grid import Scale, Task, dense_task, grid_origin
from mld_core.adapters.detection3d.settings import Setting, number, numbers, read


def _by_task(counts: Any) -> list[list[int]]:
    """Labels of each task from the tasks' class counts.

    >>> _by_task([1, 2])
    [[0], [1, 2]]
    """
    out, start = [], 0
    for count in counts:
        out.append(list(range(start, start + count)))
        start += count
    return out


def _cell_features(call: ModelCall, index: int) -> Tensor | None:
    """(H * W, D) of one frame from the shared convolution's output."""
    shared = last(call, "features")
    if not isinstance(shared, Tensor) or shared.ndim != 4:
        return None
    return shared[index].detach().flatten(1).T


class _CenterHead(Head):
    """What the four have in common: one detection is one cell of one task's heatmap.

    The limit on the number of detections is per task: what is stated for the frame is the sum.
    """

    def _per_task(self) -> tuple[list[list[int]], int | None]:
        """Labels of each task, and the most detections of one."""
        return [], None

    def _most(self) -> int | None:
        tasks, most = self._per_task()
        return None if most is None else most * len(tasks)

    def capped(self, frame: NativeFrame, limits: Thresholds) -> bool:
        """Whether one of the tasks has as many as it may."""
        tasks, most = self._per_task()
        if most is None:
            return super().capped(frame, limits)
        counts = frame.labels.bincount(minlength=max(map(max, tasks)) + 1).tolist()
        return any(sum(counts[label] for label in task) >= most for task in tasks)

    def watched(self) -> dict[str, Any]:
        """The head and its shared convolution."""
        shared = read(self.module, "shared_conv")
        return {"head": self.module} | ({} if shared is None else {"features": shared})


class CenterHead(_CenterHead):
    """A3, with the maps of BEVDet, MIT BEVFusion (x before y) and ADLab's BEVFusion.

    The score is exactly the sigmoid of the cell's logit. There is no peak test: one cell may be reported
    under several classes of a task.
    """

    kind: ClassVar[str] = "center"

    @staticmethod
    def fits(module: Any) -> bool:
        """Signature of A3."""
        return has(module, "task_heads", "bbox_coder") and isinstance(
            read(module, "num_classes"), (list, tuple)
        )

    def n_class(self) -> int | None:
        """Sum over the tasks."""
        return total_classes(list(self.module.num_classes))

    def limits(self) -> Thresholds:
        """The larger of `bbox_coder.score_threshold` and `test_cfg.score_threshold`; limits are per task."""
        coder, config = self.module.bbox_coder, read(self.module, "test_cfg")
        scores = [number(read(coder, "score_threshold"))]
        if "rotate" in str(read(config, "nms_type") or "rotate"):
            scores.append(number(read(config, "score_threshold")))
        return Thresholds(max((s for s in scores if s is not None), default=None), None, self._most())

    def _per_task(self) -> tuple[list[list[int]], int | None]:
        most = number(read(read(self.module, "test_cfg"), "post_max_size"))
        return _by_task(self.module.num_classes), None if most is None else int(most)

    def settings(self, limits: Thresholds) -> list[tuple[Setting, Any]]:
        """Both thresholds; 0 would mean none to the coder, and does mean none."""
        if limits.score is None:
            return []
        holders = (self.module.bbox_coder, read(self.module, "test_cfg"))
        return [(Setting(holder, "score_threshold"), limits.score) for holder in holders]

    def keep(self, alias: str, call: Call) -> Call:
        """Of each task the heatmap and the offset."""
        if alias == "features":
            return Call((), {}, call.output)
        if not isinstance(call.output, (tuple, list)):
            return NOTHING
        tasks = [task[0] if isinstance(task, (tuple, list)) else task for task in call.output]
        return Call((), {}, [{name: task.get(name) for name in ("heatmap", "reg")} for task in tasks])

    def _scale(self) -> Scale:
        coder = self.module.bbox_coder
        start, voxel = numbers(read(coder, "pc_range")), numbers(read(coder, "voxel_size"))
        turned = any("fusion_models" in cls.__module__ for cls in type(self.model).__mro__) or bool(
            read(self.model, "encoders")
        )
        return Scale.of(
            start or [0.0, 0.0],
            voxel or [1.0, 1.0],
            number(read(coder, "out_size_factor")) or 1.0,
            turned=turned,
        )

    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """By score, label and decoded centre."""
        maps = last(call, "head")
        if not maps:
            return None
        scale = self._scale()
        tasks = [
            dense_task(
                task["heatmap"][index],
                None if task["reg"] is None else task["reg"][index],
                classes,
                turned=scale.turned,
            )
            for task, classes in zip(maps, _by_task(self.module.num_classes), strict=True)
        ]
        features = _cell_features(call, index)
        return grid_origin(tasks, scale, frame, self.n_class() or 0, features)


class PcdetCenterHead(_CenterHead):
    """A4. With `USE_IOU_TO_RECTIFY_SCORE` a score is no sigmoid: then the centre alone tells the cell."""

    kind: ClassVar[str] = "center_pcdet"

    @staticmethod
    def fits(module: Any) -> bool:
        """Signature of A4 and A5; told apart by what the layers are."""
        signed = has(module, "heads_list", "class_names_each_head", "class_id_mapping_each_head")
        return signed and has(module, "forward_ret_dict") and hasattr(module, "shared_conv")

    def n_class(self) -> int | None:
        """`num_class`, else the names of all heads."""
        return int(read(self.module, "num_class") or sum(map(len, self.module.class_names_each_head)))

    def class_names(self) -> list[str] | None:
        """The head's own list."""
        return flat_names(read(self.module, "class_names"))

    @property
    def _config(self) -> Any:
        return read(read(self.module, "model_cfg"), "POST_PROCESSING")

    def limits(self) -> Thresholds:
        """`dense_head.model_cfg.POST_PROCESSING`: SCORE_THRESH, and NMS_POST_MAXSIZE of each head."""
        return Thresholds(number(read(self._config, "SCORE_THRESH")), None, self._most())

    def _per_task(self) -> tuple[list[list[int]], int | None]:
        most = read(read(self._config, "NMS_CONFIG"), "NMS_POST_MAXSIZE")
        return self._classes(), int(most) if isinstance(most, int) else None

    def settings(self, limits: Thresholds) -> list[tuple[Setting, Any]]:
        """SCORE_THRESH."""
        return [] if limits.score is None else [(Setting(self._config, "SCORE_THRESH"), limits.score)]

    def keep(self, alias: str, call: Call) -> Call:
        """`forward_ret_dict` as it is after the forward: training replaces its logits by probabilities."""
        if alias == "features":
            return Call((), {}, call.output)
        state = self.module.forward_ret_dict
        kept = {name: state[name] for name in ("pred_dicts", "voxel_indices") if state.get(name) is not None}
        batch = call.output if isinstance(call.output, Mapping) else call.args[0] if call.args else None
        sparse = batch.get("encoded_spconv_tensor") if isinstance(batch, Mapping) else None
        return Call((), {}, copied({**kept, "voxel_features": getattr(sparse, "features", None)}))

    def _scale(self) -> Scale:
        start, voxel = numbers(self.module.point_cloud_range), numbers(self.module.voxel_size)
        stride = number(read(self.module, "feature_map_stride")) or 1.0
        return Scale.of(start or [0.0, 0.0], voxel or [1.0, 1.0], stride)

    def _classes(self) -> list[list[int]]:
        return [[int(c) for c in numbers(ids) or []] for ids in self.module.class_id_mapping_each_head]

    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """By score, label and decoded centre."""
        kept = last(call, "head")
        if not kept or not kept.get("pred_dicts"):
            return None
        tasks, features = self._tasks(call, kept, index)
        return grid_origin(tasks, self._scale(), frame, self.n_class() or 0, features)

    def _tasks(self, call: ModelCall, kept: Any, index: int) -> tuple[list[Task], Tensor | None]:
        tasks = [
            dense_task(maps["hm"][index], maps["center"][index], classes)
            for maps, classes in zip(kept["pred_dicts"], self._classes(), strict=True)
        ]
        return tasks, _cell_features(call, index)


class VoxelNextHead(PcdetCenterHead):
    """A5: the same on occupied voxels only; `voxel_indices` (N, 3) are frame, y, x."""

    kind: ClassVar[str] = "center_sparse"

    @staticmethod
    def fits(module: Any) -> bool:
        """As A4, without a convolution over a map that the heads share."""
        signed = has(module, "heads_list", "class_names_each_head", "class_id_mapping_each_head")
        return signed and has(module, "forward_ret_dict") and not hasattr(module, "shared_conv")

    def _tasks(self, call: ModelCall, kept: Any, index: int) -> tuple[list[Task], Tensor | None]:
        del call
        places = kept["voxel_indices"]
        own = places[:, 0] == index
        xy = places[own][:, [2, 1]].float()
        tasks = [
            Task(maps["hm"][own].detach().float(), xy + maps["center"][own].detach().float(), classes)
            for maps, classes in zip(kept["pred_dicts"], self._classes(), strict=True)
        ]
        features = kept.get("voxel_features")
        return tasks, features[own] if isinstance(features, Tensor) and len(features) == len(own) else None


class Det3dCenterHead(_CenterHead):
    """A6: one detection per cell and task, of the cell's best class."""

    kind: ClassVar[str] = "center_det3d"

    @staticmethod
    def fits(module: Any) -> bool:
        """Signature of A6."""
        counts = isinstance(read(module, "num_classes"), (list, tuple))
        return (
            counts
            and has(module, "tasks")
            and not has(module, "bbox_coder")
            and not has(module, "iou_factor")
        )

    def n_class(self) -> int | None:
        """Sum over the tasks."""
        return total_classes(list(self.module.num_classes))

    @property
    def _config(self) -> Any:
        return read(read(self.model, "single_det"), "test_cfg") or read(self.model, "test_cfg")

    def limits(self) -> Thresholds:
        """`model.test_cfg` (two-stage: `model.single_det.test_cfg`): score_threshold, nms_post_max_size."""
        return Thresholds(number(read(self._config, "score_threshold")), None, self._most())

    def _per_task(self) -> tuple[list[list[int]], int | None]:
        most = number(read(read(self._config, "nms"), "nms_post_max_size"))
        return _by_task(self.module.num_classes), None if most is None else int(most)

    def settings(self, limits: Thresholds) -> list[tuple[Setting, Any]]:
        """score_threshold."""
        return [] if limits.score is None else [(Setting(self._config, "score_threshold"), limits.score)]

    def keep(self, alias: str, call: Call) -> Call:
        """Of each task the heatmap and the offset, before `predict` puts others in their place."""
        if alias == "features":
            return Call((), {}, call.output)
        output = call.output
        if isinstance(output, (tuple, list)) and output and isinstance(output[0], (tuple, list)):
            output = output[0]
        if not isinstance(output, (tuple, list)):
            return NOTHING
        tasks = [task for task in output if isinstance(task, dict)]
        return Call((), {}, [{name: task.get(name) for name in ("hm", "reg")} for task in tasks])

    def _scale(self) -> Scale:
        config = self._config
        return Scale.of(
            numbers(read(config, "pc_range")) or [0.0, 0.0],
            numbers(read(config, "voxel_size")) or [1.0, 1.0],
            number(read(config, "out_size_factor")) or 1.0,
        )

    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """By score, label and decoded centre."""
        maps = last(call, "head")
        if not maps:
            return None
        tasks = [
            dense_task(task["hm"][index], None if task["reg"] is None else task["reg"][index], classes)
            for task, classes in zip(maps, _by_task(self.module.num_classes), strict=True)
        ]
        return grid_origin(tasks, self._scale(), frame, self.n_class() or 0, _cell_features(call, index))
