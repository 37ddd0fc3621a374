"""mmdet 3.x: dense heads, two stages, the DETR family, CenterNet, through `DetDataSample`.

mmdet predicts in pixels of the original image (`ori_shape`); here boxes are in pixels of the network's input
before its padding (`img_shape`), and `FrameGeometry.affine` leads back to the original, flips included. True
boxes stand in the input's pixels in train and, as the stock pipelines load them after resizing, in the
original's in validation; `MMDetAdapter.truth_frame` ("input" or "original") says otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from mld_core.adapters.base import Adapter, Call, FrameGeometry, ModelCall, Parsed, Thresholds, Truth
from mld_core.adapters.finals import (
    Finals,
    detached,
    gathered,
    id_of,
    limited,
    parsed,
    rows_by_value,
    same_detections,
    truths_of,
)
from mld_core.adapters.mmdet.heads import (
    CenterHead,
    DenseHead,
    Head,
    ProposalHead,
    QueryHead,
    with_limits,
)
from mld_core.adapters.outputs import as_array
from mld_core.adapters.registry import register, type_names
from mld_core.adapters.settings import Setting, changed, read

_META: Final = (
    "img_id",
    "img_path",
    "ori_shape",
    "img_shape",
    "scale_factor",
    "batch_input_shape",
    "pad_shape",
    "border",
    "flip",
    "flip_direction",
)


@register
class MMDetAdapter(Adapter):
    """Detectors of mmdet.

    Attributes:
        truth_frame: "input" or "original": the pixels true boxes are in; None: by the call and the boxes.
    """

    family = "MMDetection"
    truth_frame: ClassVar[str | None] = None
    falls_back: ClassVar[bool] = False

    @staticmethod
    def detect(model: Any) -> bool:
        """By mmdet's base class; mmdet3d's detectors have the same one."""
        names = type_names(model)
        if any(module.startswith("mmdet3d.") for module, _ in names):
            return False
        return ("mmdet.models.detectors.base", "BaseDetector") in names and bool(_heads(model))

    @property
    def kind(self) -> str:
        """One of "two-stage", "query", "center", "dense"."""
        if getattr(self.model, "roi_head", None) is not None:
            return "two-stage"
        names = {name for _, name in type_names(_heads(self.model)[-1])}
        return "query" if "DETRHead" in names else "center" if "CenterNetHead" in names else "dense"

    @property
    def uses_nms(self) -> bool:  # type: ignore[override]
        """Whether the head suppresses overlapping boxes."""
        return self.kind in {"two-stage", "dense"}

    def n_class(self) -> int:
        """The box head's `num_classes`."""
        head = _heads(self.model)[-1]
        if getattr(head, "num_classes", None) is None:
            raise ValueError(
                f"{type(head).__name__} has no num_classes: expected the number of foreground classes there; "
                "pass n_class"
            )
        return int(head.num_classes)

    def class_names(self) -> list[str] | None:
        """`dataset_meta["classes"]`, where the model has it (`init_detector` sets it)."""
        meta = getattr(self.model, "dataset_meta", None) or {}
        names = meta.get("classes") or meta.get("CLASSES")
        return [str(name) for name in names] if names else None

    def _cfg(self) -> Any:
        """The `test_cfg` that the head reads: heads keep a reference of their own."""
        if self.kind == "two-stage":
            return self.model.roi_head.test_cfg
        return _heads(self.model)[-1].test_cfg

    def thresholds(self) -> Thresholds:
        """Of the head's `test_cfg`."""
        cfg = self._cfg() or {}
        iou = (cfg.get("nms") or {}).get("iou_threshold") if self.uses_nms else None
        return Thresholds.stated(cfg.get("score_thr"), iou, cfg.get("topk", cfg.get("max_per_img")))

    @contextlib.contextmanager
    def applied(self, limits: Thresholds) -> Iterator[None]:
        """Sets what the head's `test_cfg` has of them."""
        cfg = self._cfg()
        wanted = with_limits(cfg, limits).items()
        with changed([(Setting(cfg, key), value) for key, value in wanted if read(cfg, key) != value]):
            yield

    def watched(self) -> dict[str, Any]:
        """The box heads, what pools proposals, and the layer before the class logits."""
        if self.kind != "two-stage":
            head = _heads(self.model)[-1]
            heat = getattr(head, "heatmap_head", None)
            return {"head": head} if heat is None else {"head": head, "heat": heat}
        out = {f"head{i}": head for i, head in enumerate(_heads(self.model))}
        extractors = self.model.roi_head.bbox_roi_extractor
        several = isinstance(extractors, torch.nn.ModuleList)
        out["rois"] = extractors[-1] if several else extractors
        layer = getattr(_heads(self.model)[-1], "fc_cls", None)
        return out if layer is None else {**out, "class layer": layer}

    def keep(self, alias: str | None, call: Call) -> Call:
        """Outputs without their graph; of data samples sizes, detections and true boxes."""
        if alias == "rois":
            return Call((), {}, detached([*call.args, *call.kwargs.values()][1]))
        if alias == "class layer":
            return Call((), {}, detached(call.args[0] if call.args else None))
        if alias == "heat":
            return Call((), {}, detached(call.output).clone())
        if alias is not None:
            given = [*call.args, *call.kwargs.values()]
            return Call((detached(given[0]) if given else None,), {}, detached(call.output))
        samples = call.kwargs.get("data_samples", call.args[1] if len(call.args) > 1 else None) or []
        mode = call.kwargs.get("mode", call.args[2] if len(call.args) > 2 else "tensor")
        kwargs = {
            "mode": str(mode),
            "metas": [_meta(sample) for sample in samples],
            "truths": [_true(sample) for sample in samples],
        }
        found = [_found(sample) for sample in call.output] if mode == "predict" else None
        return Call((), kwargs, found)

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """The model's detections with logits and features; in train those its head's outputs would give."""
        own = self._kept(call)
        metas, outputs = own.kwargs["metas"], own.output
        if own.kwargs["mode"] not in {"predict", "loss"} or not metas:
            return None
        stated = call.thresholds or self.thresholds()
        wanted = limits.over(stated)
        with torch.no_grad():
            head = self._head(call)
            cfg = with_limits(self._cfg(), stated)
            if outputs is None and (head is None or self.kind == "two-stage"):
                return None
            frames = []
            for i, meta in enumerate(metas):
                values = None if outputs is None else outputs[i]
                frame = self._frame(head, i, meta, values, cfg, rescale=outputs is not None)
                frames.append(limited(frame, wanted, stated))
        frames, known = _logits_of_all(frames, head)
        activation = "none" if head is None or not known else "softmax" if head.softmax else "sigmoid"
        background = frames[0].logits.shape[1] - 1 if activation == "softmax" else None  # type: ignore[union-attr]
        return parsed(frames, activation, background, wanted.and_of(stated), [_geometry(m) for m in metas])

    def _kept(self, call: ModelCall) -> Call:
        own = Call(call.args, call.kwargs, call.output)
        return own if "metas" in call.kwargs else self.keep(None, own)

    def _head(self, call: ModelCall) -> Head | None:
        """What the head put out in this call; None where it is of no known layout."""
        last = _heads(self.model)[-1]
        if self.kind == "two-stage":
            return self._proposals(call, last)
        calls = call.watched.get("head", ())
        if not calls:
            return None
        maps, outputs = calls[-1].args[0] if calls[-1].args else None, calls[-1].output
        if self.kind == "query":
            logits, boxes = outputs[0][-1], outputs[1][-1]
            real = slice(
                max(0, logits.shape[1] - int(getattr(self.model, "num_queries", logits.shape[1]))), None
            )
            hidden = maps[-1] if isinstance(maps, (Tensor, list, tuple)) and len(maps) else None
            fits = isinstance(hidden, Tensor) and hidden.shape[:2] == logits.shape[:2]
            return QueryHead(last, logits[:, real], boxes[:, real], hidden[:, real] if fits else None)  # type: ignore[index]
        if self.kind == "center":
            heat = call.watched.get("heat", ())
            return CenterHead(last, maps, outputs, heat[-1].output) if heat else None
        width = getattr(last, "cls_out_channels", None)
        levels = outputs[0] if isinstance(outputs, (list, tuple)) and len(outputs) > 1 else None
        if width is None or not isinstance(levels, (list, tuple)) or any(m.shape[1] % width for m in levels):
            return None
        return DenseHead(last, maps, outputs, training=call.training)

    def _proposals(self, call: ModelCall, last: Any) -> Head | None:
        stages = [call.watched.get(f"head{i}", ()) for i in range(len(_heads(self.model)))]
        rois = call.watched.get("rois", ())
        if call.training or not rois or not all(stages):
            return None
        outputs = [stage[-1].output for stage in stages]
        if any(not isinstance(o, (list, tuple)) or not isinstance(o[0], Tensor) for o in outputs):
            return None
        logits = sum(o[0] for o in outputs) / float(len(outputs))
        vectors = call.watched.get("class layer", ())
        seen = vectors[-1].output if vectors and isinstance(vectors[-1].output, Tensor) else None
        if len(rois[0].output) != len(logits) or logits.shape[1] != self.n_class() + 1:
            return None
        return ProposalHead(last, rois[0].output, logits, outputs[-1][1], seen)

    def _frame(
        self,
        head: Head | None,
        image: int,
        meta: Mapping[str, Any],
        own: tuple[Tensor, Tensor, Tensor] | None,
        cfg: Any,
        *,
        rescale: bool,
    ) -> Finals:
        chain = None if head is None else head.replay(image, meta, cfg, rescale=rescale)
        if own is None:
            assert head is not None
            made = head.untrained(image, meta, cfg) if chain is None else None
            own = _values(made) if chain is None else (chain.boxes, chain.scores, chain.labels)
        boxes, scores, labels = own
        if rescale and meta.get("scale_factor") is not None:
            boxes = boxes * boxes.new_tensor(list(meta["scale_factor"][:2]) * 2)
        if head is None:
            return Finals(boxes, scores, labels)
        rows, cut = _rows(head, image, meta, own, chain, cfg, rescale=rescale)
        quality = head.quality(image)
        order = scores.argsort(descending=True, stable=True)
        return Finals(
            boxes=boxes,
            scores=scores,
            labels=labels,
            logits=gathered(head.logits(image), rows),
            features=head.features(image, rows),
            quality=None if quality is None else quality[rows.clamp(min=0)].float(),
            source=rows,
            cut=cut,
        ).pick(order)

    def truths(self, call: ModelCall, truth: Any) -> list[Truth] | None:
        """`gt_instances` of data samples, and `ignored_instances` as boxes to be ignored."""
        own = self._kept(call)
        samples = truth.get("data_samples") if isinstance(truth, Mapping) else truth
        if samples is None:
            targets, metas = own.kwargs["truths"], own.kwargs["metas"]
        elif isinstance(samples, (list, tuple)) and all(hasattr(s, "gt_instances") for s in samples):
            targets = [_true(sample) for sample in samples]
            metas = [_meta(sample) for sample in samples]
        else:
            return None
        if any(target is None for target in targets):
            return None
        found = truths_of(targets)
        if found is None:
            return None
        as_trained = own.kwargs["mode"] == "loss" or call.replayed
        frame = self.truth_frame or ("input" if as_trained else _frame_of(found, metas))
        for one, target, meta in zip(found, targets, metas, strict=True):
            if frame == "original" and meta.get("scale_factor") is not None:
                one.boxes = one.boxes * np.asarray(list(meta["scale_factor"][:2]) * 2, np.float32)
            one.columns["ignore"] = as_array(target["ignore"]).astype(np.bool_)
            one.input_id = id_of(meta.get("img_id", meta.get("img_path")))
        return found


def _meta(sample: Any) -> dict[str, Any]:
    return {key: sample.metainfo[key] for key in _META if key in sample.metainfo}


def _heads(model: Any) -> list[Any]:
    """The box heads: one, or one per stage of a cascade."""
    owner = getattr(model, "roi_head", None)
    head = getattr(model if owner is None else owner, "bbox_head", None)
    if isinstance(head, (list, tuple, torch.nn.ModuleList)):
        return list(head)
    return [] if head is None else [head]


def _rows(
    head: Head,
    image: int,
    meta: Mapping[str, Any],
    own: tuple[Tensor, Tensor, Tensor],
    chain: Finals | None,
    cfg: Any,
    *,
    rescale: bool,
) -> tuple[Tensor, bool]:
    """Rows of the model's own detections: by the chain; where it gives others, by their values."""
    if chain is not None and same_detections((chain.boxes, chain.scores, chain.labels), own):
        assert chain.source is not None
        return chain.source, chain.cut
    boxes, scores, labels = own
    most = int(cfg.get("topk", cfg.get("max_per_img", -1)))

    def boxes_of(rows: Tensor, _label: Tensor) -> Tensor:
        return head.boxes_of(image, rows, meta, rescale=rescale)

    found = rows_by_value(head.scores(image), boxes_of, boxes, scores, labels)
    return found, 0 < most <= len(scores)


def _logits_of_all(frames: list[Finals], head: Head | None) -> tuple[list[Finals], bool]:
    """Without logits and features where no detection's row is known: the head scores in a way of its own."""
    if head is None:
        return frames, False
    found = [f.source for f in frames if f.source is not None and len(f.source)]
    if not found or any(bool((rows >= 0).any()) for rows in found):
        return frames, True
    return [Finals(f.boxes, f.scores, f.labels, cut=f.cut) for f in frames], False


def _values(found: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of an `InstanceData`."""
    boxes = getattr(found.bboxes, "tensor", found.bboxes)
    return boxes.detach(), found.scores.detach(), found.labels.detach()


def _found(sample: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A copy: mmdet and its hooks may go on with the sample."""
    boxes, scores, labels = _values(sample.pred_instances)
    return boxes.clone(), scores.clone(), labels.clone()


def _true(sample: Any) -> dict[str, Any] | None:
    """Boxes, labels and what to ignore, of `gt_instances` and `ignored_instances`."""
    given = getattr(sample, "gt_instances", None)
    if given is None or "bboxes" not in given:
        return None
    parts = [(given, False)]
    ignored = getattr(sample, "ignored_instances", None)
    if ignored is not None and "bboxes" in ignored and "labels" in ignored:
        parts.append((ignored, True))
    boxes = [getattr(p.bboxes, "tensor", p.bboxes).detach().reshape(-1, 4) for p, _ in parts]
    return {
        "boxes": torch.cat([b.float() for b in boxes]),
        "labels": torch.cat([torch.as_tensor(p.labels).detach().reshape(-1) for p, _ in parts]),
        "ignore": torch.cat([torch.full((len(b),), flag) for b, (_, flag) in zip(boxes, parts, strict=True)]),
    }


def _frame_of(truths: Sequence[Truth], metas: Sequence[Mapping[str, Any]]) -> str:
    """In "original" pixels, unless a box lies outside the original image: then in the network's "input"."""
    for truth, meta in zip(truths, metas, strict=True):
        shape = meta.get("ori_shape")
        if shape is None or not len(truth.boxes):
            continue
        right, bottom = truth.boxes[:, 2].max(), truth.boxes[:, 3].max()
        if right > shape[1] + 1 or bottom > shape[0] + 1:
            return "input"
    return "original"


def _geometry(meta: Mapping[str, Any]) -> FrameGeometry:
    """The network's input without padding, and the way to the original image."""
    height, width = (int(v) for v in meta["img_shape"][:2])
    if meta.get("scale_factor") is None:
        return FrameGeometry(height, width)
    sx, sy = (1 / float(v) for v in meta["scale_factor"][:2])
    direction = str(meta.get("flip_direction")) if meta.get("flip") else ""
    across = (-sx, 0.0, width * sx) if direction in {"horizontal", "diagonal"} else (sx, 0.0, 0.0)
    down = (0.0, -sy, height * sy) if direction in {"vertical", "diagonal"} else (0.0, sy, 0.0)
    return FrameGeometry(height, width, across + down)
