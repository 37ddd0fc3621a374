"""Centre heads: MMDetection3D's and its forks' (A3), OpenPCDet's (A4), VoxelNeXt's (A5), det3d's (A6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.detection3d.frames import NativeFrame, Origin
from mld_core.adapters.detection3d.heads.base import (
    Head,
    copied,
    has,
    last,
    total_classes,
)
from mld_core.adapters.detection3d.heads.grid import Scale, Task, dense_task, grid_origin
from mld_core.adapters.settings import Setting, number, numbers, read


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

    The limit on the number of detections is each task's.
    """

    enters: ClassVar[bool] = False

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

    signature: ClassVar[tuple[str, ...]] = ("task_heads", "bbox_coder")

    @classmethod
    def fits(cls, module: Any) -> bool:
        """Signature of A3."""
        return super().fits(module) and isinstance(read(module, "num_classes"), (list, tuple))

    def n_class(self) -> int | None:
        """Sum over the tasks."""
        return total_classes(list(self.module.num_classes))

    def limits(self) -> Thresholds:
        """The larger of `bbox_coder.score_threshold` and `test_cfg.score_threshold`; limits are per task."""
        stated, config = super().limits(), read(self.module, "test_cfg")
        rotate = "rotate" in str(read(config, "nms_type") or "rotate")
        own = number(read(config, "score_threshold")) if rotate else None
        return stated.and_of(Thresholds(score=own))

    def shared(self) -> tuple[list[list[int]], int | None]:
        """See `Head`."""
        most = number(read(read(self.module, "test_cfg"), "post_max_size"))
        return _by_task(self.module.num_classes), None if most is None else int(most)

    def places(self) -> tuple[Setting, None, None]:
        """`bbox_coder.score_threshold`."""
        return Setting(self.module.bbox_coder, "score_threshold"), None, None

    def settings(self, limits: Thresholds) -> list[tuple[Setting, Any]]:
        """Both thresholds; 0 would mean none to the coder, and does mean none."""
        also = Setting(read(self.module, "test_cfg"), "score_threshold")
        return [pair for place, value in super().settings(limits) for pair in ((place, value), (also, value))]

    def kept(self, call: Call) -> Any:
        """Of each task the heatmap and the offset."""
        if not isinstance(call.output, (tuple, list)):
            return None
        tasks = [task[0] if isinstance(task, (tuple, list)) else task for task in call.output]
        return [{name: task.get(name) for name in ("heatmap", "reg")} for task in tasks]

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

    signature: ClassVar[tuple[str, ...]] = (
        "heads_list", "class_names_each_head", "class_id_mapping_each_head", "forward_ret_dict",
    )  # fmt: skip
    convolved: ClassVar[bool] = True  # over a map that the heads share

    @classmethod
    def fits(cls, module: Any) -> bool:
        """Signature of A4 and A5; told apart by what the layers are."""
        return super().fits(module) and hasattr(module, "shared_conv") == cls.convolved

    def n_class(self) -> int | None:
        """`num_class`, else the names of all heads."""
        return int(read(self.module, "num_class") or sum(map(len, self.module.class_names_each_head)))

    @property
    def _config(self) -> Any:
        return read(read(self.module, "model_cfg"), "POST_PROCESSING")

    def places(self) -> tuple[Setting, None, None]:
        """`dense_head.model_cfg.POST_PROCESSING.SCORE_THRESH`; NMS_POST_MAXSIZE is each head's."""
        return Setting(self._config, "SCORE_THRESH"), None, None

    def shared(self) -> tuple[list[list[int]], int | None]:
        """See `Head`."""
        most = read(read(self._config, "NMS_CONFIG"), "NMS_POST_MAXSIZE")
        return self._classes(), int(most) if isinstance(most, int) else None

    def kept(self, call: Call) -> Any:
        """`forward_ret_dict` as it is after the forward: training replaces its logits by probabilities."""
        state = self.module.forward_ret_dict
        kept = {name: state[name] for name in ("pred_dicts", "voxel_indices") if state.get(name) is not None}
        batch = call.output if isinstance(call.output, Mapping) else call.args[0] if call.args else None
        sparse = batch.get("encoded_spconv_tensor") if isinstance(batch, Mapping) else None
        return copied({**kept, "voxel_features": getattr(sparse, "features", None)})

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
    convolved: ClassVar[bool] = False

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

    signature: ClassVar[tuple[str, ...]] = ("tasks",)

    @classmethod
    def fits(cls, module: Any) -> bool:
        """Signature of A6."""
        counts = isinstance(read(module, "num_classes"), (list, tuple))
        return (
            counts and super().fits(module) and not (has(module, "bbox_coder") or has(module, "iou_factor"))
        )

    def n_class(self) -> int | None:
        """Sum over the tasks."""
        return total_classes(list(self.module.num_classes))

    @property
    def _config(self) -> Any:
        return read(read(self.model, "single_det"), "test_cfg") or read(self.model, "test_cfg")

    def places(self) -> tuple[Setting, None, None]:
        """`model.test_cfg` (two-stage: `model.single_det.test_cfg`): score_threshold."""
        return Setting(self._config, "score_threshold"), None, None

    def shared(self) -> tuple[list[list[int]], int | None]:
        """See `Head`."""
        most = number(read(read(self._config, "nms"), "nms_post_max_size"))
        return _by_task(self.module.num_classes), None if most is None else int(most)

    def kept(self, call: Call) -> Any:
        """Of each task the heatmap and the offset, before `predict` puts others in their place."""
        output = call.output
        if isinstance(output, (tuple, list)) and output and isinstance(output[0], (tuple, list)):
            output = output[0]
        if not isinstance(output, (tuple, list)):
            return None
        return [{name: task.get(name) for name in ("hm", "reg")} for task in output if isinstance(task, dict)]

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
