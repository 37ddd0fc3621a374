"""Hugging Face's query detectors: (Conditional, Deformable, DAB) DETR, RT-DETR, D-FINE, LW-DETR, YOLOS, ...

The model holds no thresholds; its image processor's numbers count where it has any. Logits one wider than the
number of labels mean softmax with "no object" last, else each class has its sigmoid. Queries that exist in
train only (denoising queries, query groups) are dropped.

Padded batches: the image processors give boxes in parts of the padded canvas, and a model that was trained
on those predicts in the same frame; the checkpoints of the original authors predict in parts of the image
without its padding. One frame holds for a run: "padded" once the model trains or is given labels, else what
overlaps the true boxes better in the first padded batch that has any; without true boxes "valid".
`HuggingFaceDetrAdapter.box_frame` ("padded" or "valid") says so beforehand.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from mld_core.adapters.base import Adapter, Call, FrameGeometry, ModelCall, Parsed, Thresholds, Truth
from mld_core.adapters.finals import detached
from mld_core.adapters.queries import corners, normalised_truths, query_parsed, real_queries, scaling
from mld_core.adapters.registry import register, type_names
from mld_core.geometry.iou import box_iou

_ENDINGS: Final = ("ForObjectDetection", "DetrForSegmentation")
_TOP_100: Final = ("conditional_detr", "deformable_detr", "dab-detr", "deta")  # their processors' top_k
_LABEL_KEYS: Final = ("boxes", "class_labels", "image_id", "iscrowd", "area", "size", "orig_size")
_SAME_ASPECT: Final = 0.02
_CLEARLY: Final = 0.05  # of mean IoU
_TOLD: Final = {
    "padded": "Predicted boxes are read as parts of the padded images (box_frame='padded').",
    "valid": "Predicted boxes are read as parts of the images without their padding (box_frame='valid').",
}


@register
class HuggingFaceDetrAdapter(Adapter):
    """`...ForObjectDetection` of transformers whose queries are the detections.

    Attributes:
        box_frame: "padded", "valid", or None (see the module).
    """

    family = "Hugging Face DETR"
    uses_nms = False
    box_frame: ClassVar[str | None] = None
    _settled: str | None = None

    @staticmethod
    def detect(model: Any) -> bool:
        """By a base class of transformers and the number of queries in its config; none that reads a text."""
        config = getattr(model, "config", None)
        return _detects(model) and _queries(config) is not None and not hasattr(config, "text_config")

    @staticmethod
    def refuses(model: Any) -> str | None:
        """Grounding DINO, OmDet-Turbo, OWL and the like."""
        if not _detects(model) or not hasattr(getattr(model, "config", None), "text_config"):
            return None
        return (
            f"{type(model).__name__} scores the words of a text, not classes of its own: nothing of it is "
            "recorded. Give an adapter for your prompts (mld_core.adapters.registry.register), or subclass "
            "the tracer with _get_n_class and _parse_model_output (docs/usage.md, own detectors)."
        )

    def n_class(self) -> int:
        """`config.num_labels`."""
        return int(self.model.config.num_labels)

    def class_names(self) -> list[str] | None:
        """`config.id2label`, with the gaps its data set has; None for LABEL_0, LABEL_1, ..."""
        named = {int(k): str(v) for k, v in (self.model.config.id2label or {}).items()}
        names = [named.get(i, f"LABEL_{i}") for i in range(self.n_class())]
        return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names

    def thresholds(self) -> Thresholds:
        """The number of detections that the image processor of a family with sigmoids returns."""
        config = self.model.config
        kind = str(getattr(config, "model_type", ""))
        if kind in _TOP_100:
            return Thresholds(max_detections=100)
        softmax = kind in {"detr", "table-transformer", "yolos"}
        return Thresholds(max_detections=None if softmax else _queries(config))

    def keep(self, alias: str | None, call: Call) -> Call:
        """Sizes, labels, logits, boxes and the last hidden state; images and inner layers are let go."""
        del alias  # nothing but the model itself is watched
        given = self._arguments(call)
        pixels = given["pixel_values"]
        mask = given.get("pixel_mask")
        valid = None
        if isinstance(mask, Tensor):
            filled_rows = mask.detach() != 0
            valid = torch.stack([filled_rows[:, :, 0].sum(1), filled_rows[:, 0, :].sum(1)], 1)
        labels = given.get("labels")
        if labels is not None:
            labels = [{k: detached(t[k]) for k in _LABEL_KEYS if k in t} for t in labels]
        kwargs = {
            "shape": tuple(int(s) for s in pixels.shape),
            "valid": valid,
            "labels": labels,
            "maskable": "pixel_mask" in self._names(),
        }
        return Call((), kwargs, _outputs(call.output))

    def _names(self) -> list[str]:
        names = [name for name in inspect.signature(type(self.model).forward).parameters if name != "self"]
        return names if "pixel_values" in names else ["pixel_values", "pixel_mask"]

    def _arguments(self, call: Call) -> dict[str, Any]:
        return {**dict(zip(self._names(), call.args, strict=False)), **call.kwargs}

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """Top (query, class) pairs or each query's best class, in pixels of `pixel_values`."""
        if "shape" not in call.kwargs:
            call = self._kept(call)
        outputs, given = call.output, call.kwargs
        if outputs is None or outputs["logits"].shape[0] != given["shape"][0]:
            return None
        wanted = limits.over(call.thresholds or self.thresholds()).filled()
        with torch.no_grad():
            real = self._real_queries(outputs, training=call.training)
            logits, boxes = outputs["logits"][:, real], outputs["pred_boxes"][:, real]
            softmax = self._softmax(logits.shape[-1])
            hidden = _last_hidden(outputs["hidden"], outputs["logits"].shape[1], real)
            labels = given["labels"] if given["labels"] is not None else _labels(call.truth)
            frame = self._frame(given, labels, boxes, training=call.training)
            whole = [given["shape"][-2:]] * len(logits)
            sizes = given["valid"] if frame == "valid" and given["valid"] is not None else whole
            geometry = self._geometry(given, labels)
            made = query_parsed(logits, boxes, hidden, sizes, wanted, geometry, softmax=softmax)
        if self._settled is not None:
            made.facts, made.notes = {"box_frame": self._settled}, [_TOLD[self._settled]]
        return made

    def _kept(self, call: ModelCall) -> ModelCall:
        own = self.keep(None, Call(call.args, call.kwargs, call.output))
        return replace(call, args=own.args, kwargs=own.kwargs, output=own.output)

    def _softmax(self, width: int) -> bool:
        n_class = self.n_class()
        if width not in {n_class, n_class + 1}:
            raise ValueError(
                f"logits of width {width} for config.num_labels={n_class}: expected {n_class} (sigmoid) or "
                f"{n_class + 1} (softmax with no object last)"
            )
        return width == n_class + 1

    def _real_queries(self, outputs: Mapping[str, Any], *, training: bool) -> slice:
        """Without denoising queries (first) and further groups (last), which there are in train only."""
        count, own = int(outputs["logits"].shape[1]), _queries(self.model.config) or 0
        split = outputs["split"]
        if split is not None and sum(split) == count:
            return slice(int(split[0]), count)
        return real_queries(count, own, getattr(self.model.config, "group_detr", 1), training=training)

    def _frame(self, given: Mapping[str, Any], labels: Any, boxes: Tensor, *, training: bool) -> str:
        """What the predicted boxes (B, Q, 4) are parts of: see the module."""
        if self.box_frame not in {None, "padded", "valid"}:
            raise ValueError(f"box_frame={self.box_frame!r}: expected 'padded', 'valid' or None")
        if self.box_frame is not None:
            return self.box_frame
        whole, valid = given["shape"][-2:], given["valid"]
        if valid is None or bool((valid == valid.new_tensor(whole)).all()):
            return "padded"  # nothing is padded: both are the same
        if training or given["labels"] is not None:
            self._settled = "padded"
        elif self._settled is None and labels is not None and any(len(t["boxes"]) for t in labels):
            found = [_overlap(boxes, labels, sizes, whole) for sizes in ([whole] * len(boxes), valid)]
            self._settled = "valid" if found[1] > found[0] + _CLEARLY else "padded"
        return self._settled or "valid"

    def _geometry(self, given: Mapping[str, Any], labels: Any) -> list[FrameGeometry]:
        """The size of `pixel_values`, and the way to the original image where the labels tell its size."""
        images, (height, width) = given["shape"][0], given["shape"][-2:]
        valid = None if given["valid"] is None else given["valid"].tolist()
        known = labels is not None and len(labels) == images
        out = []
        for i in range(images):
            original = labels[i].get("orig_size") if known else None
            rows, columns = (height, width) if valid is None else valid[i]
            if valid is None and not given["maskable"] and _aspect_differs(original, height, width):
                original = None  # padded, and nothing tells by how much
            out.append(FrameGeometry(height, width, scaling(original, columns, rows)))
        return out

    def truths(self, call: ModelCall, truth: Any) -> list[Truth] | None:
        """Labels as the image processors make them: boxes in parts of `pixel_values`, padding included."""
        if "shape" not in call.kwargs:
            call = self._kept(call)
        labels = _labels(call.kwargs["labels"] if truth is None else truth)
        if labels is None:
            return None
        height, width = call.kwargs["shape"][-2:]
        valid = call.kwargs["valid"]
        known = valid is not None and len(valid) == len(labels)
        sizes = [(height, width)] * len(labels)
        return normalised_truths(labels, "class_labels", sizes, valid.tolist() if known else None)


def _detects(model: Any) -> bool:
    names = type_names(model)
    known = any(m.startswith("transformers.") and n.endswith(_ENDINGS) for m, n in names)
    return known and ("transformers.modeling_utils", "PreTrainedModel") in names


def _labels(truth: Any) -> Any:
    """Targets as the image processors make them, None of another form."""
    if not isinstance(truth, (list, tuple)):
        return None
    known = all(isinstance(t, Mapping) and {"boxes", "class_labels"} <= set(t) for t in truth)
    return truth if known else None


def _overlap(boxes: Tensor, labels: Any, sizes: Any, whole: tuple[float, float]) -> float:
    """Mean over the true boxes of the largest IoU with a query's, were queries' boxes parts of `sizes`."""
    found = []
    for own, target, size in zip(boxes, labels, sizes, strict=True):
        true = torch.as_tensor(target["boxes"], device=own.device).reshape(-1, 4)
        if len(true):
            found.append(box_iou(corners(true, whole), corners(own, size)).amax(1))
    return float(torch.cat(found).mean())


def _queries(config: Any) -> int | None:
    """How many queries a trained model answers with, None if the config names none."""
    if getattr(config, "two_stage", False) and hasattr(config, "two_stage_num_proposals"):
        return int(config.two_stage_num_proposals)
    for name in ("num_queries", "num_detection_tokens"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return None


def _outputs(output: Any) -> dict[str, Any] | None:
    """Logits (B, Q, K), boxes (B, Q, 4), last hidden state and the split of queries of a model's answer."""
    if isinstance(output, Mapping):
        logits, boxes = output.get("logits"), output.get("pred_boxes")
        hidden, meta = output.get("last_hidden_state"), output.get("denoising_meta_values")
    elif isinstance(output, (list, tuple)):
        logits, boxes = _pair(output)
        hidden = None
        meta = next((v for v in output if isinstance(v, Mapping) and "dn_num_split" in v), None)
    else:
        return None
    if not isinstance(logits, Tensor) or not isinstance(boxes, Tensor):
        return None
    split = None if not meta else [int(n) for n in meta["dn_num_split"]]
    return {
        "logits": logits.detach(),
        "pred_boxes": boxes.detach(),
        "hidden": detached(hidden),
        "split": split,
    }


def _pair(output: Sequence[Any]) -> tuple[Any, Any]:
    """Logits and boxes in a tuple (`return_dict=False`): the first two neighbours that fit each other."""
    for logits, boxes in itertools.pairwise(output):
        if not (isinstance(logits, Tensor) and isinstance(boxes, Tensor)):
            continue
        if logits.ndim == 3 and boxes.shape == (*logits.shape[:2], 4):
            return logits, boxes
    return None, None


def _last_hidden(hidden: Any, queries: int, real: slice) -> Tensor | None:
    """(B, Q, D) of the queries that count; of YOLOS they stand behind the image's patches."""
    if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[1] < queries:
        return None
    return hidden[:, hidden.shape[1] - queries :][:, real]


def _aspect_differs(original: Any, height: int, width: int) -> bool:
    if original is None:
        return False
    rows, columns = torch.as_tensor(original).reshape(-1).tolist()
    return bool(abs(columns / rows / (width / height) - 1) > _SAME_ASPECT)
