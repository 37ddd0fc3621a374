"""The heads of mmdet's detectors: which anchor, query or proposal a final detection came from.

Each class holds what a head put out in one call and runs the head's own chain of filters on it again,
carrying indices: mmdet's `InstanceData` carries any further field through suppression and cuts, and
`multiclass_nms` returns indices. Of heads with a chain of their own, detections are found by their values.
"""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from mld_core.adapters.base import Thresholds
from mld_core.adapters.finals import Finals, clipped, gathered, level_features
from mld_core.adapters.queries import corners
from mld_core.adapters.registry import type_names

_BASE: Final = "mmdet.models.dense_heads.base_dense_head"
_ALL: Final = 1 << 30


class Head(ABC):
    """What a head put out in one call.

    Attributes:
        head: the module.
        softmax: what makes scores of the logits; with it the last column is the background.
    """

    def __init__(self, head: Any, *, softmax: bool) -> None:
        self.head = head
        self.softmax = softmax

    @abstractmethod
    def logits(self, image: int) -> Tensor:
        """(A, K) of all anchors, queries or proposals of an image."""

    @abstractmethod
    def replay(self, image: int, meta: Mapping[str, Any], cfg: Any, *, rescale: bool) -> Finals | None:
        """The chain of filters; None where the head has one of its own."""

    @abstractmethod
    def features(self, image: int, rows: Tensor) -> Tensor | None:
        """(N, D) of final detections; rows of -1 give NaN."""

    def quality(self, image: int) -> Tensor | None:
        """(A,) centerness or objectness as a probability, None where there is none."""
        del image
        return None

    def scores(self, image: int) -> Tensor:
        """(A, K) as the head scores them, without the background."""
        logits = self.logits(image)
        table = logits.softmax(-1)[:, :-1] if self.softmax else logits.sigmoid()
        quality = self.quality(image)
        return table if quality is None else table * quality[:, None]

    def boxes_of(self, image: int, rows: Tensor, meta: Mapping[str, Any], *, rescale: bool) -> Tensor:
        """(N, 4) boxes of rows, to tell rows of the same score apart; zeros where nothing tells."""
        del image, meta, rescale
        return torch.zeros(len(rows), 4, device=rows.device)

    def untrained(self, image: int, meta: Mapping[str, Any], cfg: Any) -> Any:
        """The detections of a training forward where `replay` gives none, in pixels of the input.

        Raises:
            ValueError: the head has no way to make them.
        """
        del image, meta, cfg
        raise ValueError(
            f"{type(self.head).__name__} shows no detections in train: expected a head with predict_by_feat; "
            "record validation only (splits=['val'])"
        )


class DenseHead(Head):
    """A head with scores and boxes at every cell of several maps.

    Args:
        head: the module.
        maps: what it was given: per level (B, D, H, W).
        outputs: per level class scores (B, A * K, H, W), boxes, and centerness or objectness if it has one.
        training: whether it was called in train.
    """

    def __init__(self, head: Any, maps: Any, outputs: Sequence[Any], *, training: bool) -> None:
        super().__init__(head, softmax=not getattr(head, "use_sigmoid_cls", True))
        if training and len(outputs) == 3 and _named(head, "VFNetHead"):
            outputs = (outputs[0], outputs[2])  # in train it shows its boxes before the refinement too
        self.outputs = outputs
        self._maps = maps
        self._width = int(head.cls_out_channels)

    def _flat(self, index: int, image: int, width: int) -> list[Tensor]:
        return [level[image].detach().permute(1, 2, 0).reshape(-1, width) for level in self.outputs[index]]

    def logits(self, image: int) -> Tensor:
        """See `Head`."""
        flat = torch.cat(self._flat(0, image, self._width))
        return flat.clamp(1e-9, 1 - 1e-6).logit() if _named(self.head, "TOODHead") else flat

    def quality(self, image: int) -> Tensor | None:
        """See `Head`."""
        if len(self.outputs) < 3:
            return None
        return torch.cat(self._flat(2, image, 1))[:, 0].sigmoid()

    def features(self, image: int, rows: Tensor) -> Tensor | None:
        """See `Head`."""
        if not isinstance(self._maps, (list, tuple)) or len(self._maps) != len(self.outputs[0]):
            return None
        per_cell = [level.shape[1] // self._width for level in self.outputs[0]]
        return level_features(self._maps, image, rows, per_cell)

    def untrained(self, image: int, meta: Mapping[str, Any], cfg: Any) -> Any:
        """See `Head`."""
        one = _one(self.outputs, image)
        return self.head.predict_by_feat(*one, batch_img_metas=[meta], cfg=cfg, rescale=False)[0]

    def replay(self, image: int, meta: Mapping[str, Any], cfg: Any, *, rescale: bool) -> Finals | None:
        """See `Head`."""
        methods = [getattr(type(self.head), n) for n in ("predict_by_feat", "_predict_by_feat_single")]
        if _named(self.head, "YOLOXHead"):
            found = self._yolox(image, cfg)
        elif all(method.__module__ == _BASE for method in methods):
            found = self._anchors(image, meta, cfg)
        else:
            return None
        most = int(cfg.get("max_per_img", _ALL))
        every = copy.deepcopy(cfg)
        every["max_per_img"] = _ALL
        with_scores = self.head._bbox_post_process(  # noqa: SLF001 - the library's own chain
            results=found, cfg=every, rescale=rescale, with_nms=True, img_meta=meta
        )
        kept = with_scores[:most]
        return Finals(
            _plain(kept.bboxes), kept.scores, kept.labels, source=kept.source, cut=len(with_scores) > most
        )

    def _priors(self, **more: bool) -> Any:
        levels, first = [level.shape[-2:] for level in self.outputs[0]], self.outputs[0][0]
        return self.head.prior_generator.grid_priors(levels, dtype=first.dtype, device=first.device, **more)

    def _anchors(self, image: int, meta: Mapping[str, Any], cfg: Any) -> Any:
        """The candidates that pass threshold and number per level, before suppression."""
        select = sys.modules["mmdet.models.utils.misc"].filter_scores_and_topk
        head = self.head
        deltas = self._flat(1, image, head.bbox_coder.encode_size)
        qualities = self._flat(2, image, 1) if len(self.outputs) > 2 else None
        priors = self._priors()
        parts: dict[str, list[Any]] = {
            n: [] for n in ("scores", "labels", "source", "deltas", "priors", "factor")
        }
        start = 0
        for i, logits in enumerate(self._flat(0, image, self._width)):
            table = logits.softmax(-1)[:, :-1] if self.softmax else logits.sigmoid()
            scores, labels, rows, _ = select(table, cfg.get("score_thr", 0), cfg.get("nms_pre", -1))
            values = (scores, labels, rows + start, deltas[i][rows], priors[i][rows])
            for name, value in zip(parts, values, strict=False):
                parts[name].append(value)
            if qualities is not None:
                parts["factor"].append(qualities[i][rows, 0].sigmoid())
            start += len(logits)
        found = _instances()
        found.bboxes = head.bbox_coder.decode(
            torch.cat(parts["priors"]), torch.cat(parts["deltas"]), max_shape=meta["img_shape"]
        )
        for name in ("scores", "labels", "source"):
            setattr(found, name, torch.cat(parts[name]))
        if qualities is not None:
            found.score_factors = torch.cat(parts["factor"])
        return found

    def _yolox(self, image: int, cfg: Any) -> Any:
        """YOLOX keeps the best class of each cell where score times objectness is enough."""
        head = self.head
        priors = self._priors(with_stride=True)
        deltas = torch.cat(self._flat(1, image, 4))
        boxes = head._bbox_decode(torch.cat(priors), deltas[None])[0]  # noqa: SLF001 - the library's own
        objectness = self.quality(image)
        assert objectness is not None
        best, labels = self.logits(image).sigmoid().max(1)
        rows = torch.where(objectness * best >= cfg["score_thr"])[0]
        found = _instances()
        found.bboxes, found.scores = boxes[rows], best[rows] * objectness[rows]
        found.labels, found.source = labels[rows], rows
        return found


class QueryHead(Head):
    """A head of the DETR family: one row of logits and one box per query.

    Args:
        head: the module.
        logits: (B, Q, K) of the last decoder layer, of the real queries.
        boxes: (B, Q, 4) centre and size in parts of the image.
        hidden: (B, Q, D) or None.
    """

    def __init__(self, head: Any, logits: Tensor, boxes: Tensor, hidden: Tensor | None) -> None:
        super().__init__(head, softmax=not head.loss_cls.use_sigmoid)
        self._logits, self._boxes, self._hidden = logits, boxes, hidden

    def logits(self, image: int) -> Tensor:
        """See `Head`."""
        return self._logits[image]

    def features(self, image: int, rows: Tensor) -> Tensor | None:
        """See `Head`."""
        return None if self._hidden is None else self._hidden[image][rows.clamp(min=0)].float()

    def boxes_of(self, image: int, rows: Tensor, meta: Mapping[str, Any], *, rescale: bool) -> Tensor:
        """See `Head`."""
        height, width = meta["img_shape"][:2]
        boxes = clipped(corners(self._boxes[image][rows], (height, width)), height, width)
        return boxes / boxes.new_tensor(list(meta["scale_factor"]) * 2) if rescale else boxes

    def replay(self, image: int, meta: Mapping[str, Any], cfg: Any, *, rescale: bool) -> Finals | None:
        """See `Head`."""
        table = self.scores(image)
        if self.softmax:
            values, classes = table.max(-1)
        else:
            values = table.reshape(-1)
            classes = torch.arange(len(values), device=values.device) % table.shape[1]
        most = min(int(cfg.get("max_per_img", len(table))), len(values))
        scores, index = values.topk(most)
        rows = index if self.softmax else torch.div(index, table.shape[1], rounding_mode="floor")
        boxes = self.boxes_of(image, rows, meta, rescale=rescale)
        return Finals(boxes, scores, classes[index], source=rows, cut=len(values) > most)


class CenterHead(Head):
    """CenterNet of mmdet: a heatmap of each class; the peaks are the detections.

    Args:
        head: the module.
        maps: what it was given.
        outputs: per level heatmap probabilities, sizes and offsets, one level.
        logits: (B, K, H, W) of the heatmap before the sigmoid, which is inside the head.
    """

    def __init__(self, head: Any, maps: Any, outputs: Sequence[Any], logits: Tensor) -> None:
        super().__init__(head, softmax=False)
        self.outputs, self._maps, self._heat = outputs, maps, logits

    def logits(self, image: int) -> Tensor:
        """See `Head`."""
        return self._heat[image].flatten(1).T

    def scores(self, image: int) -> Tensor:
        """See `Head`."""
        heat: Tensor = self.outputs[0][0][image]
        return heat.flatten(1).T

    def features(self, image: int, rows: Tensor) -> Tensor | None:
        """See `Head`."""
        return level_features(list(self._maps), image, rows, [1])

    def replay(self, image: int, meta: Mapping[str, Any], cfg: Any, *, rescale: bool) -> Finals | None:
        """A chain of its own: peaks of the heatmap."""
        del image, meta, cfg, rescale
        return None

    def boxes_of(self, image: int, rows: Tensor, meta: Mapping[str, Any], *, rescale: bool) -> Tensor:
        """See `Head`."""
        size, offset = (level[0][image].flatten(1).T[rows] for level in self.outputs[1:3])
        height, width = self._heat.shape[-2:]
        input_height, input_width = meta.get("batch_input_shape", meta["img_shape"])[:2]
        scale = size.new_tensor([input_width / width, input_height / height])
        centre = torch.stack([rows % width, torch.div(rows, width, rounding_mode="floor")], 1) + offset
        boxes = torch.cat([(centre - size / 2) * scale, (centre + size / 2) * scale], 1)
        if "border" in meta:  # top, bottom, left, right of RandomCenterCropPad
            boxes = boxes - boxes.new_tensor([meta["border"][2], meta["border"][0]] * 2)
        return boxes / boxes.new_tensor(list(meta["scale_factor"]) * 2) if rescale else boxes

    def untrained(self, image: int, meta: Mapping[str, Any], cfg: Any) -> Any:
        """See `Head`."""
        del cfg
        whole, one = {"border": [0.0] * 4, **meta}, _one(self.outputs, image)
        return self.head.predict_by_feat(*one, batch_img_metas=[whole], rescale=False)[0]


class ProposalHead(Head):
    """The box head of a two-stage detector; of a cascade the mean of its stages' logits counts.

    Args:
        head: the last stage's module.
        rois: (N, 5) image and box of all proposals, of the last stage.
        logits: (N, K + 1), background last.
        deltas: (N, 4 * K) or (N, 4) of the last stage.
        vectors: (N, D) what the class layer saw, or None.
    """

    def __init__(self, head: Any, rois: Tensor, logits: Tensor, deltas: Any, vectors: Tensor | None) -> None:
        super().__init__(head, softmax=True)
        self._rois, self._logits, self._deltas, self._vectors = rois, logits, deltas, vectors

    def _of(self, image: int, values: Tensor) -> Tensor:
        return values[self._rois[:, 0] == image]

    def logits(self, image: int) -> Tensor:
        """See `Head`."""
        return self._of(image, self._logits)

    def features(self, image: int, rows: Tensor) -> Tensor | None:
        """See `Head`."""
        return None if self._vectors is None else gathered(self._of(image, self._vectors).flatten(1), rows)

    def replay(self, image: int, meta: Mapping[str, Any], cfg: Any, *, rescale: bool) -> Finals | None:
        """See `Head`."""
        if not isinstance(self._deltas, Tensor):
            return None
        rois = self._of(image, self._rois)
        if not len(rois):
            return None
        raw = self.head._predict_by_feat_single(  # noqa: SLF001 - the library's own chain
            roi=rois,
            cls_score=self.logits(image),
            bbox_pred=self._of(image, self._deltas),
            img_meta=meta,
            rescale=rescale,
            rcnn_test_cfg=None,
        )
        suppress = sys.modules["mmdet.models.layers.bbox_nms"].multiclass_nms
        found, labels, flat = suppress(
            raw.bboxes, raw.scores, cfg["score_thr"], cfg["nms"], -1, return_inds=True
        )
        most = int(cfg.get("max_per_img", -1))
        most = most if most > 0 else len(found)
        rows = torch.div(flat, raw.scores.shape[1] - 1, rounding_mode="floor")[:most]
        return Finals(found[:most, :4], found[:most, 4], labels[:most], source=rows, cut=len(found) > most)


def with_limits(cfg: Any, limits: Thresholds) -> Any:
    """A copy of a head's `test_cfg` with the limits of a call."""
    made = copy.deepcopy(cfg) if cfg is not None else {}
    if limits.score is not None and "score_thr" in made:
        made["score_thr"] = limits.score
    if limits.max_detections is not None:
        made["topk" if "topk" in made else "max_per_img"] = limits.max_detections
    if limits.iou is not None and isinstance(made.get("nms"), Mapping) and "iou_threshold" in made["nms"]:
        made["nms"]["iou_threshold"] = limits.iou
    return made


def _named(head: Any, name: str) -> bool:
    return any(cls == name for _, cls in type_names(head))


def _one(outputs: Sequence[Sequence[Tensor]], image: int) -> list[list[Tensor]]:
    """The outputs of one image, as a batch of one."""
    return [[level[image : image + 1].detach() for level in kind] for kind in outputs]


def _instances() -> Any:
    """An empty `InstanceData`: the library's own class, loaded as the model is made with it."""
    return sys.modules["mmengine.structures"].InstanceData()


def _plain(boxes: Any) -> Tensor:
    """The tensor in one of mmdet's box classes."""
    inner = getattr(boxes, "tensor", boxes)
    assert isinstance(inner, Tensor)
    return inner
