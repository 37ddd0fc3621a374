"""DETR as its authors lay it out (facebookresearch/detr, Deformable-DETR and what was derived from them).

The repositories are copied into users' trees, so the parts and the output tell them: a transformer, class
and box layers, `num_queries`; a dict with `pred_logits` and `pred_boxes`. Boxes are in parts of each image
without its padding, which is at the right and at the bottom: pixels of the padded batch and of the image are
the same. The models hold no thresholds; Deformable DETR's post-processing returns the 100 best (query, class)
pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from mld_core.adapters.base import Adapter, Call, FrameGeometry, ModelCall, Parsed, Thresholds, Truth
from mld_core.adapters.finals import detached, sizes_of, truths_of
from mld_core.adapters.outputs import as_array
from mld_core.adapters.queries import normalised_truths, query_parsed, real_queries, scaling
from mld_core.adapters.registry import register, type_names

_PARTS: Final = ("class_embed", "bbox_embed", "transformer", "num_queries")
_SIGMOID_NAMES: Final = ("Deformable", "Conditional", "DAB", "DN", "DINO", "LWDETR")
_OTHERS: Final = ("transformers.", "mmdet.", "mmdet3d.", "ultralytics.", "torchvision.")
_TARGET_KEYS: Final = ("boxes", "labels", "image_id", "iscrowd", "area", "size", "orig_size")


@register
class DetrAdapter(Adapter):
    """DETR, Deformable DETR, Conditional, DAB, DN DETR, DINO in their authors' layout.

    Attributes:
        sigmoid: whether each class has its own sigmoid (no "no object" column); None: by the class layer (a
            list of layers, one per decoder layer) and the model's name.
    """

    family = "DETR"
    uses_nms = False
    sigmoid: ClassVar[bool | None] = None

    @staticmethod
    def detect(model: Any) -> bool:
        """By the parts; models of libraries with adapters of their own are not meant."""
        if any(module.startswith(_OTHERS) for module, _ in type_names(model)):
            return False
        inner = _inner(model)
        return all(hasattr(inner, part) for part in _PARTS)

    @property
    def _softmax(self) -> bool:
        if self.sigmoid is not None:
            return not self.sigmoid
        inner = _inner(self.model)
        named = any(part in name for _, name in type_names(inner) for part in _SIGMOID_NAMES)
        return not named and hasattr(inner.class_embed, "out_features")

    def n_class(self) -> int:
        """Outputs of the class layer, less "no object" where there is a softmax."""
        layer = _inner(self.model).class_embed
        layer = layer if hasattr(layer, "out_features") else next(iter(layer), None)
        if layer is None or not hasattr(layer, "out_features"):
            raise ValueError(
                f"class_embed={type(layer).__name__}: expected a linear layer, or a list of them, with "
                "out_features to tell the number of classes; pass n_class"
            )
        return int(layer.out_features) - int(self._softmax)

    def thresholds(self) -> Thresholds:
        """What the post-processing returns for evaluation: any score, with sigmoids the best 100."""
        return Thresholds(0.0, None, None if self._softmax else 100)

    def watched(self) -> dict[str, Any]:
        """The transformer: the decoder's last hidden state is what the class layer sees."""
        return {"transformer": _inner(self.model).transformer}

    def keep(self, alias: str | None, call: Call) -> Call:
        """Sizes, logits, boxes, the last hidden state, targets; images and inner layers are let go."""
        if alias is not None:
            return Call((), {}, detached(_last_hidden(call.output)))
        samples, targets = [*call.args, *call.kwargs.values(), None, None][:2]
        targets = [{k: detached(t[k]) for k in _TARGET_KEYS if k in t} for t in _targets(targets)]
        return Call((), {"sizes": _sizes(samples), "targets": targets}, _outputs(call.output))

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """Top (query, class) pairs or each query's best class, in pixels of each image."""
        own = call if "sizes" in call.kwargs else self.keep(None, Call(call.args, call.kwargs, call.output))
        if own.output is None or own.kwargs["sizes"] is None:
            return None
        wanted = limits.over(call.thresholds or self.thresholds()).filled()
        with torch.no_grad():
            every = own.output["pred_logits"]
            sizes = as_array(own.kwargs["sizes"]).tolist()
            if len(sizes) != len(every):
                return None
            targets = own.kwargs["targets"] or _targets(call.truth)
            inner, geometry = _inner(self.model), self._geometry(sizes, targets)
            groups = getattr(inner, "group_detr", 1)
            real = real_queries(every.shape[1], int(inner.num_queries), groups, training=call.training)
            logits, boxes = every[:, real], own.output["pred_boxes"][:, real]
            hidden = _hidden_of(call, every, real)
            return query_parsed(logits, boxes, hidden, sizes, wanted, geometry, softmax=self._softmax)

    def _geometry(self, sizes: Sequence[Any], targets: Sequence[Mapping[str, Any]]) -> list[FrameGeometry]:
        known = len(targets) == len(sizes)
        return [
            FrameGeometry(int(h), int(w), scaling(targets[i].get("orig_size"), w, h) if known else None)
            for i, (h, w) in enumerate(sizes)
        ]

    def truths(self, call: ModelCall, truth: Any) -> list[Truth] | None:
        """Targets of the repositories' data sets (`size`, boxes in parts of it), or xyxy pixels.

        Boxes beyond 1 with a `size` beside them are pixels that were never normalised.
        """
        targets = _targets(call.kwargs.get("targets") if truth is None else truth)
        if not targets:
            return None
        if all("size" in t for t in targets) and all(
            t["boxes"].numel() == 0 or float(t["boxes"].max()) <= 1.0 for t in targets
        ):
            sizes = [t["size"].reshape(-1).tolist() for t in targets]
            return normalised_truths(targets, "labels", sizes)
        return truths_of(list(targets))


def _inner(model: Any) -> Any:
    """The detector in a segmentation model (`DETRsegm.detr`)."""
    inner = getattr(model, "detr", None)
    return model if inner is None or hasattr(model, "class_embed") else inner


def _targets(value: Any) -> list[Mapping[str, Any]]:
    """The targets of a batch, [] if it is anything else."""
    if not isinstance(value, (list, tuple)):
        return []
    if not all(isinstance(t, Mapping) and {"boxes", "labels"} <= set(t) for t in value):
        return []
    return list(value)


def _sizes(samples: Any) -> Any:
    """(B, 2) height and width of each image without padding; None of an unknown input."""
    tensors, mask = getattr(samples, "tensors", None), getattr(samples, "mask", None)
    if isinstance(samples, Mapping):
        tensors, mask = samples.get("tensors"), samples.get("mask")
    if isinstance(mask, Tensor):
        seen = ~mask.detach().bool()  # True is padding
        return torch.stack([seen[:, :, 0].sum(1), seen[:, 0, :].sum(1)], 1)
    sizes = sizes_of(samples if tensors is None else tensors)
    return None if sizes is None else [(size.height, size.width) for size in sizes]


def _outputs(output: Any) -> dict[str, Tensor] | None:
    parts = output if isinstance(output, (list, tuple)) else [output]
    for part in parts:
        if isinstance(part, Mapping) and {"pred_logits", "pred_boxes"} <= set(part):
            return {key: part[key].detach() for key in ("pred_logits", "pred_boxes")}
    return None


def _last_hidden(output: Any) -> Any:
    """(B, Q, D) of the decoder's last layer: of (L, B, Q, D), or of a list with one entry per layer."""
    hidden = output[0] if isinstance(output, (list, tuple)) and len(output) else output
    if isinstance(hidden, (list, tuple)):
        return hidden[-1] if len(hidden) else None
    if not isinstance(hidden, Tensor):
        return None
    return hidden[-1] if hidden.ndim == 4 else hidden


def _hidden_of(call: ModelCall, logits: Tensor, real: slice) -> Tensor | None:
    calls = call.watched.get("transformer", ())
    hidden = calls[-1].output if calls else None
    if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[:2] != logits.shape[:2]:
        return None
    return hidden[:, real]
