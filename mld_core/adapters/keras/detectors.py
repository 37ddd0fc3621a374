"""KerasCV's and KerasHub's detectors: RetinaNet, YOLOV8Detector, D-FINE, what has their prediction decoder.

A call's output is what `model(images)` returns: boxes and scores of every anchor. It is decoded here with the
model's own `decode_predictions`, and with a decoder of the limits asked for (the model's own decoder, and so
its compiled functions, stay as they are). The decoder suppresses by the best class of each anchor, so a
detection belongs to one anchor and its logits are that anchor's.

Models of one's own: see `ml_debugger.keras`, `parse_fn`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from mld_core.adapters.base import Adapter, ModelCall, Parsed, Thresholds, Truth
from mld_core.adapters.keras.boxes import (
    anchors_of,
    cell_features,
    frames_of,
    padded_truths,
    to_numpy,
    xyxy_of,
)
from mld_core.adapters.outputs import Array, DetectionOutput
from mld_core.adapters.registry import register, type_names

_PACKAGES: Final = ("keras_cv.", "keras_hub.")
_YOLO_LAYER: Final = "yolo_v8_head_{level}_class_3_conv"
_SMALLEST: Final = 1e-7
_OF_CENTER_NET: Final = frozenset({"detection_boxes_strided", "detection_keypoints"})
_TRUTH_COLUMNS: Final = {
    "groundtruth_is_crowd": ("crowd", np.bool_),
    "groundtruth_area": ("area", np.float32),
}


@register
class KerasDetectorAdapter(Adapter):
    """Detectors with `decode_predictions` and a `prediction_decoder`."""

    family = "Keras"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._maps: Any = None

    @staticmethod
    def detect(model: Any) -> bool:
        """By the package and the parts."""
        own = any(module.startswith(_PACKAGES) for module, _ in type_names(model))
        return own and all(
            hasattr(model, name) for name in ("decode_predictions", "num_classes", "bounding_box_format")
        )

    def n_class(self) -> int:
        """`num_classes`."""
        return int(self.model.num_classes)

    def thresholds(self) -> Thresholds:
        """Of the prediction decoder."""
        decoder = self.model.prediction_decoder
        return Thresholds.stated(decoder.confidence_threshold, decoder.iou_threshold, decoder.max_detections)

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """Decodes what the network put out, and finds the anchor of every detection."""
        images, raw = call.args[0], call.output
        if not isinstance(raw, Mapping):
            return None
        wanted = limits.over(call.thresholds or self.thresholds()).filled()
        assert wanted.max_detections is not None
        decoder = self._decoder(wanted)
        decoded, seen = self._decoded(raw, images, decoder)
        frames, own_format = frames_of(images), str(decoder.bounding_box_format)
        table, from_logits = to_numpy(seen[1]).astype(np.float32), bool(decoder.from_logits)
        probabilities = _sigmoid(table) if from_logits else table
        logits = table if from_logits else _logit(table)
        maps = self._feature_maps(images)
        parts: dict[str, list[Array]] = {
            name: [] for name in ("boxes", "scores", "labels", "logits", "features", "source_index")
        }
        cut = []
        names = decoded.get("classes", decoded.get("labels"))
        for i, frame in enumerate(frames):
            count = int(to_numpy(decoded["num_detections"])[i])
            kept = slice(0, min(count, wanted.max_detections))
            cut.append(count > wanted.max_detections)
            scores = to_numpy(decoded["confidence"])[i][kept]
            boxes = xyxy_of(
                to_numpy(decoded["boxes"])[i][kept], self.model.bounding_box_format, frame.height, frame.width
            )
            every = xyxy_of(to_numpy(seen[0])[i], own_format, frame.height, frame.width)
            rows = anchors_of(probabilities[i].max(-1), every, scores, boxes)
            parts["boxes"].append(boxes)
            parts["scores"].append(scores)
            parts["labels"].append(to_numpy(names)[i][kept].astype(np.int64))
            parts["source_index"].append(rows)
            parts["logits"].append(np.where((rows >= 0)[:, None], logits[i][np.maximum(rows, 0)], np.nan))
            features = None if maps is None else cell_features(maps, i, rows, len(every))
            if features is not None:
                parts["features"].append(features)
        whole = len(parts["features"]) == len(frames)
        features_or_none = parts.pop("features") if whole else (parts.pop("features"), None)[1]
        output = DetectionOutput(**parts, features=features_or_none)
        return Parsed(output, "sigmoid", None, cut, wanted, geometry=list(frames))

    def _decoder(self, limits: Thresholds) -> Any:
        """A decoder as the model's own with other limits; one more detection shows whether the cap cut."""
        own = self.model.prediction_decoder
        assert limits.max_detections is not None
        return type(own).from_config(
            {
                **own.get_config(),
                "confidence_threshold": limits.score,
                "iou_threshold": limits.iou,
                "max_detections": limits.max_detections + 1,
                "name": None,
            }
        )

    def _decoded(self, raw: Any, images: Any, decoder: Any) -> tuple[Mapping[str, Any], Sequence[Any]]:
        """The decoder's answer, and the boxes and scores of all anchors that it was given."""
        seen: list[Any] = []

        def recording(boxes: Any, classes: Any, **more: Any) -> Any:
            seen[:] = [boxes, classes]
            return decoder(boxes, classes, **more)

        recording.bounding_box_format = decoder.bounding_box_format  # type: ignore[attr-defined]
        with _swapped(self.model, recording):
            decoded = self.model.decode_predictions(raw, images)
        return decoded, seen

    def _feature_maps(self, images: Any) -> list[Array] | None:
        """Per level what the class layer sees, by a part of the model's own graph; None where it has none."""
        if self._maps is None:
            whole, inputs = _class_inputs(self.model)
            keras = sys.modules.get("keras")
            found = bool(inputs) and keras is not None
            self._maps = keras.Model(whole.inputs, inputs) if found and keras is not None else False
        if self._maps is False:
            return None
        maps = self._maps(images, training=False)
        every = [to_numpy(m) for m in (maps if isinstance(maps, (list, tuple)) else [maps])]
        return [m if m.ndim == 4 else m[:, None] for m in every]

    def truths(self, call: ModelCall, truth: Any) -> list[Truth] | None:
        """Padded or ragged boxes in the model's format; None of another layout."""
        if not isinstance(truth, Mapping):
            return None
        return padded_truths(truth, str(self.model.bounding_box_format), frames_of(call.args[0]))


@register
class TensorFlowDetectionAdapter(Adapter):
    """Outputs of the TensorFlow Object Detection API: model-builder models and exported SavedModels.

    What they return is final, and what the API's own evaluators see: all of it is recorded. An exported model
    numbers classes from 1, a model-builder model from 0. Both hold converted scores only: logits are
    logarithms of probabilities, with the background as column 0, or inverted sigmoids.
    """

    family = "TensorFlow Object Detection API"
    uses_nms: ClassVar[bool] = False
    falls_back: ClassVar[bool] = False

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._sums_to_one: bool | None = None

    @staticmethod
    def detect(model: Any) -> bool:
        """By the API's base class, or by the outputs that the serving signature names."""
        if any(names == ("object_detection.core.model", "DetectionModel") for names in type_names(model)):
            return True
        return "detection_boxes" in _signature_outputs(model)

    @property
    def _exported(self) -> bool:
        return bool(_signature_outputs(self.model))

    def n_class(self) -> int:
        """`num_classes`, or the width of the exported scores, without the background where they have it.

        Column 0 is the background in SSD and R-CNN. CenterNet has none; it exports boxes in its map's cells
        or key points, and no scores of all anchors.
        """
        if hasattr(self.model, "num_classes"):
            return int(self.model.num_classes)
        outputs = _signature_outputs(self.model)
        for name in ("detection_multiclass_scores", "raw_detection_scores"):
            width = outputs[name].shape[-1] if name in outputs else None
            if width:
                center = "raw_detection_scores" not in outputs and not _OF_CENTER_NET.isdisjoint(outputs)
                return int(width) - int(not center)
        raise ValueError(
            "the exported model names neither detection_multiclass_scores nor raw_detection_scores: expected "
            "one of them to tell the number of classes; pass n_class"
        )

    def thresholds(self) -> Thresholds:
        """Any score, any number: what the model itself cut off is not told."""
        return Thresholds(0.0)

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """`detection_*` of the output, in pixels of the images given."""
        found, frames = call.output, frames_of(call.args[0])
        if not isinstance(found, Mapping) or "detection_boxes" not in found:
            return None
        wanted = limits.over(self.thresholds()).without_iou()
        table = found.get("detection_multiclass_scores")
        scores_of = None if table is None else to_numpy(table).astype(np.float32)
        background = scores_of is not None and scores_of.shape[-1] > self.n_class()
        softmax = background and self._softmax(found.get("raw_detection_scores", table))
        parts: dict[str, list[Array]] = {name: [] for name in ("boxes", "scores", "labels", "logits")}
        anchors: list[Array] = []
        cut = []
        for i, frame in enumerate(frames):
            count = int(to_numpy(found["num_detections"])[i])
            scores = to_numpy(found["detection_scores"])[i][:count]
            kept = np.flatnonzero(scores >= (wanted.score or 0.0))
            cut.append(wanted.max_detections is not None and len(kept) > wanted.max_detections)
            kept = kept[: wanted.max_detections]
            boxes = to_numpy(found["detection_boxes"])[i][kept]
            parts["boxes"].append(xyxy_of(boxes, "rel_yxyx", frame.height, frame.width))
            parts["scores"].append(scores[kept])
            labels = to_numpy(found["detection_classes"])[i][kept].astype(np.int64)
            parts["labels"].append(labels - int(self._exported))
            if scores_of is not None:
                # The background has no meaning beside sigmoids.
                rows = scores_of[i][kept][:, int(background and not softmax) :]
                parts["logits"].append(np.log(np.maximum(rows, _SMALLEST)) if softmax else _logit(rows))
            if "detection_anchor_indices" in found:
                anchors.append(to_numpy(found["detection_anchor_indices"])[i][kept].astype(np.int64))
        logits = parts.pop("logits")
        output = DetectionOutput(
            **parts,
            logits=logits if scores_of is not None else None,
            source_index=anchors if len(anchors) == len(frames) else None,
        )
        activation = "none" if scores_of is None else "softmax" if softmax else "sigmoid"
        return Parsed(output, activation, 0 if softmax else None, cut, wanted, geometry=list(frames))

    def _softmax(self, table: Any) -> bool:
        """Whether classes and background sum to 1; where a batch holds no score, as in those before."""
        sums = to_numpy(table).sum(-1)
        if (sums > 0).any():
            self._sums_to_one = bool(np.all(np.abs(sums[sums > 0] - 1) < 1e-2))
        return self._sums_to_one is not False

    def truths(self, call: ModelCall, truth: Any) -> list[Truth] | None:
        """`groundtruth_boxes` (B, N, 4) yxyx in parts of the image, and `groundtruth_classes`.

        These are one-hot (B, N, C), zeros fill up, as the API's input pipeline gives them, or (B, N) from 1,
        as its evaluation has them. `groundtruth_is_crowd` and `groundtruth_area` (B, N) are read too.
        """
        if not isinstance(truth, Mapping) or "groundtruth_boxes" not in truth:
            return None
        names = to_numpy(truth["groundtruth_classes"])
        classes = names - 1 if names.ndim == 2 else np.where(names.sum(-1) > 0, names.argmax(-1), -1)
        plain = {"boxes": truth["groundtruth_boxes"], "classes": classes}
        out = padded_truths(plain, "rel_yxyx", frames_of(call.args[0]))
        for name, (column, kind) in _TRUTH_COLUMNS.items():
            given = None if name not in truth or out is None else to_numpy(truth[name])
            if given is not None and given.shape == classes.shape:
                for own, values, real in zip(out or (), given, classes >= 0, strict=True):
                    own.columns[column] = values[real].astype(kind)
        return out


@contextlib.contextmanager
def _swapped(model: Any, decoder: Any) -> Iterator[None]:
    """Another decoder in place of the model's, past the setter that would throw away compiled functions."""
    members = vars(model)
    before = members["_prediction_decoder"]
    members["_prediction_decoder"] = decoder
    try:
        yield
    finally:
        members["_prediction_decoder"] = before


def _class_inputs(model: Any) -> tuple[Any, list[Any]]:
    """A graph, and its tensors that the class layers see, level by level; of queries (B, Q, D)."""
    with contextlib.suppress(AttributeError, ValueError):
        head = getattr(model, "classification_head", None)
        if head is not None:
            nodes = head._inbound_nodes  # noqa: SLF001 - Keras shows a shared layer's inputs nowhere else
            return model, [node.input_tensors[0] for node in nodes]
        queries = getattr(getattr(model, "backbone", None), "output", None)
        if isinstance(queries, Mapping) and "last_hidden_state" in queries:  # D-FINE
            return model.backbone, [queries["last_hidden_state"]]
        return model, [model.get_layer(_YOLO_LAYER.format(level=level)).input for level in (1, 2, 3)]
    return model, []


def _signature_outputs(model: Any) -> Mapping[str, Any]:
    signatures = getattr(model, "signatures", None)
    serving = signatures.get("serving_default") if isinstance(signatures, Mapping) else None
    outputs = getattr(serving, "structured_outputs", None)
    return outputs if isinstance(outputs, Mapping) else {}


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # beyond what float32 holds: 0
        return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def _logit(p: Array) -> Array:
    p = np.clip(p, _SMALLEST, 1 - _SMALLEST)
    return np.asarray(np.log(p) - np.log1p(-p), np.float32)
