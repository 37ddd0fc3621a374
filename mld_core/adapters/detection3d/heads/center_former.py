"""CenterFormer (A7): candidates are the best cells of a heatmap that lies in the neck or the backbone."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.detection3d.frames import NativeFrame, Origin, find_rows, per_class
from mld_core.adapters.detection3d.heads.base import NOTHING, Head, last, total_classes
from mld_core.adapters.finals import gathered
from mld_core.adapters.settings import Setting, number, numbers, read

_CLAMP = 1e-4  # of the framework's own sigmoid
_TASK = ("reg", "order", "labels", "scores", "mask", "iou", "ct_feat", "hm")


class CenterFormerHead(Head):
    """A7. A final score is the cell's heatmap probability, times a power of the predicted IoU if any.

    The class logits are those of `hm_head` (with several tasks `hm_heads`), cloned in its hook: their sigmoid
    is taken in place.
    """

    kind: ClassVar[str] = "center_former"

    signature: ClassVar[tuple[str, ...]] = ("tasks", "iou_factor")

    def _counts(self) -> list[int]:
        stated = read(self.module, "num_classes")
        if isinstance(stated, (list, tuple)):
            return [int(count) for count in stated]
        return [len(names) for names in read(self.module, "class_names") or []]

    def _classes(self) -> list[range]:
        """Labels of each task."""
        ends = accumulate(self._counts(), initial=0)
        return [range(*both) for both in pairwise(ends)]

    def n_class(self) -> int | None:
        """Sum over the tasks."""
        return total_classes(self._counts())

    @property
    def _trunk(self) -> Any:
        """What holds the heatmaps' layers and the score threshold: det3d's neck, MMDetection3D's backbone."""
        trunks = [read(self.model, name) for name in ("neck", "backbone", "pts_neck", "pts_backbone")]
        return next((trunk for trunk in trunks if read(trunk, "hm_head", "hm_heads") is not None), None)

    @property
    def _config(self) -> Any:
        return read(self.module, "test_cfg") or read(self.model, "test_cfg")

    def places(self) -> tuple[Setting, None, None]:
        """The trunk's score_threshold: that of `test_cfg` is not used."""
        return Setting(self._trunk, "score_threshold"), None, None

    def limits(self) -> Thresholds:
        """As `places`, and `nms_post_max_size` over all tasks."""
        most = read(read(self._config, "nms"), "nms_post_max_size")
        whole = numbers(most) or ([float(most)] * len(self._counts()) if isinstance(most, int) else None)
        return replace(super().limits(), max_detections=int(sum(whole)) if whole else None)

    def watched(self) -> dict[str, Any]:
        """The head, and what makes each heatmap."""
        one, many = read(self._trunk, "hm_head"), read(self._trunk, "hm_heads")
        layers = [one] if many is None else list(many)
        heats = {f"heat{place}": layer for place, layer in enumerate(layers) if layer is not None}
        return {"head": self.module, **heats}

    def keep(self, alias: str, call: Call) -> Call:
        """Of each task the candidates, in the layout (B, C, N) that `predict` turns round."""
        if alias.startswith("heat"):
            return Call((), {}, call.output.detach().clone()) if isinstance(call.output, Tensor) else NOTHING
        output = call.output
        while isinstance(output, (list, tuple)) and output and isinstance(output[0], (list, tuple)):
            output = output[0]
        if isinstance(output, dict):
            output = [output]
        if not isinstance(output, (list, tuple)):
            return NOTHING
        return Call((), {}, [{name: task.get(name) for name in _TASK} for task in output])

    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """By label, score and decoded centre among the candidates; logits of all tasks at their cells."""
        tasks = last(call, "head")
        if not tasks:
            return None
        source = torch.full((len(frame),), -1, dtype=torch.int64, device=frame.labels.device)
        quality = torch.full((len(frame),), torch.nan, device=frame.labels.device)
        features: list[Tensor] = []
        for task, classes in zip(tasks, self._classes(), strict=True):
            own = torch.where((frame.labels >= classes.start) & (frame.labels < classes.stop))[0]
            local = torch.full_like(source, -1)
            local[own] = self._candidates(task, index, frame, own, classes.start)
            found = torch.where(local >= 0)[0]
            source[found] = task["order"][index][local[found]].to(source.device)
            probability = task["scores"][index].reshape(-1)[local[found]].float()
            quality[found] = frame.scores[found].float() / probability.clamp(min=_CLAMP)
            if task["ct_feat"] is not None:
                features.append(gathered(task["ct_feat"][index].T, local))
        parts = [
            (self._logits(task, last(call, f"heat{place}"), index, source), list(classes))
            for place, (task, classes) in enumerate(zip(tasks, self._classes(), strict=True))
        ]
        merged = None
        if len(features) == len(tasks):
            merged = torch.stack(features).nan_to_num(0.0).sum(0)  # each detection has one task
        logits = per_class(parts, sum(self._counts()))
        return Origin(source, logits, merged, quality if self._has_iou(tasks) else None)

    @staticmethod
    def _has_iou(tasks: Any) -> bool:
        return any(task["iou"] is not None for task in tasks)

    def _candidates(self, task: Any, index: int, frame: NativeFrame, own: Tensor, start: int) -> Tensor:
        order, labels = task["order"][index], task["labels"][index].reshape(-1)
        width = task["hm"].shape[-1]
        cells = torch.stack([order % width, torch.div(order, width, rounding_mode="floor")], 1).float()
        config = self._config
        stride = number(read(config, "out_size_factor")) or 1.0
        voxel, low = numbers(read(config, "voxel_size")), numbers(read(config, "pc_range"))
        step = order.new_tensor(voxel[:2] if voxel else [1.0, 1.0], dtype=torch.float32) * stride
        corner = order.new_tensor(low[:2] if low else [0.0, 0.0], dtype=torch.float32)
        centers = (cells + task["reg"][index].float().T) * step + corner
        classes = torch.arange(int(labels.max()) + 1 if len(labels) else 1, device=labels.device)
        one_hot = labels[:, None] == classes
        scores = task["scores"][index].reshape(-1).float()
        if task["iou"] is not None:
            factor = numbers(self.module.iou_factor) or [float(self.module.iou_factor)]
            power = scores.new_tensor(factor)[labels.clamp(max=len(factor) - 1)]
            scores = scores * ((task["iou"][index].reshape(-1).float() + 1) * 0.5).clamp(0, 1) ** power
        table = torch.where(one_hot, scores[:, None], scores.new_tensor(-1.0))
        wanted = (frame.labels[own] - start).clamp(max=table.shape[1] - 1)
        return find_rows(
            table, lambda rows: centers[rows], frame.boxes[own, :2].float(), frame.scores[own], wanted
        )

    @staticmethod
    def _logits(task: Any, heat: Any, index: int, cells: Tensor) -> Tensor:
        """At the cells: of `hm_head`, else from the probabilities in the dict."""
        if isinstance(heat, Tensor) and heat.shape == task["hm"].shape:
            return gathered(heat[index].flatten(1).T, cells)
        probability = task["hm"][index].detach().float().clamp(_CLAMP, 1 - _CLAMP)
        return gathered(probability.logit().flatten(1).T, cells)
