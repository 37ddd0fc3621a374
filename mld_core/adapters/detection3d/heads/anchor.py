"""Anchor heads: MMDetection3D's `Anchor3DHead` (A1), OpenPCDet's `AnchorHeadSingle` and `-Multi` (A2)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from mld_core.adapters.base import Call, ModelCall
from mld_core.adapters.detection3d.frames import NativeFrame, Origin, find_rows, per_class, same_rows
from mld_core.adapters.detection3d.heads.base import Head, each_class, has, last
from mld_core.adapters.finals import gathered, level_features
from mld_core.adapters.settings import Setting, read


class AnchorHead(Head):
    """A1. Post-processing takes the best anchors of each level and suppresses per class.

    A final score is exactly the sigmoid of its anchor's logit; anchors with the same score are told apart by
    decoding them (centre and dimensions: yaw is changed by the direction bin afterwards).
    """

    kind: ClassVar[str] = "anchor"

    signature: ClassVar[tuple[str, ...]] = (
        "conv_cls",
        "conv_reg",
        "conv_dir_cls",
        "bbox_coder",
        "num_classes",
    )

    @classmethod
    def fits(cls, module: Any) -> bool:
        """Signature of A1, and what lays out the anchors."""
        return super().fits(module) and (has(module, "prior_generator") or has(module, "anchor_generator"))

    def n_class(self) -> int | None:
        """`num_classes` counts the foreground."""
        return int(self.module.num_classes)

    def places(self) -> tuple[Setting, Setting, Setting]:
        """`head.test_cfg`: score_thr, nms_thr, max_num."""
        config = read(self.module, "test_cfg")
        return Setting(config, "score_thr"), Setting(config, "nms_thr"), Setting(config, "max_num")

    def watched(self) -> dict[str, Any]:
        """The head, and the layer that makes its class logits."""
        return {"head": self.module, "features": self.module.conv_cls}

    def activation(self) -> tuple[str, int | None]:
        """Softmax heads have a background column at the end."""
        if read(self.module, "use_sigmoid_cls") is False:
            return "softmax", int(self.module.num_classes)
        return "sigmoid", None

    def _columns(self) -> int:
        return int(self.module.num_classes) + (self.activation()[0] == "softmax")

    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """By score, label and decoded box."""
        output = last(call, "head")
        if not isinstance(output, list) or len(output) < 2:
            return None
        levels, deltas = output[0], output[1]
        classes = self._columns()
        logits = torch.cat([_rows(level[index], classes) for level in levels]).float()
        table = logits.sigmoid() if self.activation()[0] == "sigmoid" else logits.softmax(-1)[:, :-1]
        places = _Decoded(self.module, deltas, index)
        source = find_rows(table, places, frame.boxes[:, :6].float(), frame.scores, frame.labels)
        maps = [kept.output for kept in call.watched.get("features", ())][-len(levels) :]
        features = None
        if len(maps) == len(levels):
            features = level_features(maps, index, source, [level.shape[1] // classes for level in levels])
        return Origin(source, gathered(logits, source), features)


def _rows(level: Tensor, width: int) -> Tensor:
    """(A * width, H, W) of one frame as (H * W * A, width)."""
    return level.detach().permute(1, 2, 0).reshape(-1, width)


class _Decoded:
    """Centre and dimensions of chosen anchors; the anchors are laid out only when somebody asks."""

    def __init__(self, head: Any, deltas: list[Tensor], index: int) -> None:
        self.head = head
        self.deltas = deltas
        self.index = index

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        head = self.head
        width = int(read(head.bbox_coder, "code_size") or read(head, "box_code_size") or 7)
        generator = read(head, "prior_generator", "anchor_generator")
        sizes = [tuple(level.shape[-2:]) for level in self.deltas]
        priors = generator.grid_anchors(sizes, device=self.deltas[0].device)
        return (
            torch.cat([p.reshape(-1, width) for p in priors]),
            torch.cat([_rows(level[self.index], width) for level in self.deltas]),
        )

    def __call__(self, rows: Tensor) -> Tensor:
        priors, deltas = self._tables
        decoded: Tensor = self.head.bbox_coder.decode(priors[rows], deltas[rows])
        return decoded[:, :6].float()


class PcdetAnchorHead(Head):
    """A2. Final boxes are rows of `batch_box_preds`, untouched; their place there is the anchor."""

    kind: ClassVar[str] = "anchor_pcdet"

    signature: ClassVar[tuple[str, ...]] = ("anchors", "box_coder", "forward_ret_dict")

    @classmethod
    def fits(cls, module: Any) -> bool:
        """Signature of A2, single (`conv_cls`, `conv_box`) or multi (`rpn_heads`)."""
        layers = has(module, "conv_cls", "conv_box") or has(module, "rpn_heads")
        return layers and super().fits(module)

    def n_class(self) -> int | None:
        """Of the head, else of the model."""
        found = read(self.module, "num_class") or read(self.model, "num_class")
        return None if found is None else int(found)

    def places(self) -> tuple[Setting, Setting, Setting]:
        """`model_cfg.POST_PROCESSING`: SCORE_THRESH, NMS_CONFIG.NMS_THRESH and NMS_POST_MAXSIZE."""
        config = read(read(self.model, "model_cfg"), "POST_PROCESSING")
        suppression = read(config, "NMS_CONFIG")
        places = Setting(config, "SCORE_THRESH"), Setting(suppression, "NMS_THRESH")
        return *places, Setting(suppression, "NMS_POST_MAXSIZE")

    def shared(self) -> tuple[list[list[int]], int | None]:
        """Each class, where they are suppressed one by one."""
        return each_class(read(read(self.model, "model_cfg"), "POST_PROCESSING"), self.n_class())

    def watched(self) -> dict[str, Any]:
        """The head, and the layer that makes its class logits where there is one."""
        layer = read(self.module, "conv_cls")
        return {"head": self.module} | ({} if layer is None else {"features": layer})

    def kept(self, call: Call) -> Any:
        """The predictions of all anchors: a second stage puts its own under the same keys."""
        batch = call.output if isinstance(call.output, Mapping) else call.args[0] if call.args else None
        names = ("batch_cls_preds", "batch_box_preds", "multihead_label_mapping", "cls_preds_normalized")
        return {name: batch.get(name) for name in names} if isinstance(batch, Mapping) else None

    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """By equality of the box."""
        kept = last(call, "head")
        if not isinstance(kept, dict) or kept["batch_cls_preds"] is None or kept["batch_box_preds"] is None:
            return None
        scores, boxes = kept["batch_cls_preds"], kept["batch_box_preds"][index]
        parts = [part[index] for part in scores] if isinstance(scores, (list, tuple)) else [scores[index]]
        if kept["cls_preds_normalized"]:
            parts = [part.clamp(1e-7, 1 - 1e-7).logit() for part in parts]
        source = same_rows(boxes[:, : frame.boxes.shape[1]], frame.boxes)
        features = None
        calls = call.watched.get("features", ())
        if len(calls) and len(parts) == 1:
            cells = calls[-1].output.shape[-2] * calls[-1].output.shape[-1]
            features = level_features([calls[-1].output], index, source, [max(1, len(boxes) // cells)])
        return Origin(source, self._logits(parts, kept["multihead_label_mapping"], source), features)

    def _logits(self, parts: list[Tensor], mapping: Any, source: Tensor) -> Tensor:
        """Each head of several knows its own classes only."""
        n_class = self.n_class() or parts[0].shape[1]
        if len(parts) == 1 and parts[0].shape[1] == n_class:
            return gathered(parts[0], source)
        full = []
        for number_, part in enumerate(parts):
            labels = mapping[number_] - 1 if mapping is not None else torch.arange(part.shape[1])
            full.append(per_class([(part, labels.tolist())], n_class))
        return gathered(torch.cat(full), source)
