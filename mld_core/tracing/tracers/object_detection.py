"""2D detection tracers: called by hand, one batch at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from mld_core.tracing.capture.detectors import has_detector
from mld_core.tracing.tracers.detection_tracer import (
    DetectionTorchTracer,
    DetectionTrainingTracer,
    tracer_class,
)
from mld_core.tracing.tracers.keras_object_detection import ObjectDetectionTrainingKerasTracer, is_keras


class ObjectDetectionTorchTracer(DetectionTorchTracer):
    """What 2D detection tracers of PyTorch models have in common."""

    task: ClassVar[str] = "detection"

    @staticmethod
    def detect(model: Any) -> bool:
        """Whether an adapter of a 2D family knows the model."""
        return has_detector(model, "detection")


class ObjectDetectionTrainingTorchTracer(DetectionTrainingTracer, ObjectDetectionTorchTracer):
    """Records a detector's final boxes, logits, features and the true boxes, in one's own loop.

    Args:
        model: the detector, or a module that holds exactly one.
        model_name: see `TorchTracer`.
        version_name: see `TorchTracer`.
        target_layers: alias -> module path; recorded per detection where its shape allows it.
        additional_fields: see `TorchTracer`.
        additional_label_fields: the user's own columns per true box; values come with the truth or through
            `**kwargs`, one list per image.
        auto_sync: see `TorchTracer`.
        force_table_recreate: see `TorchTracer`.
        api_endpoint: see `TorchTracer`.
        api_key: see `TorchTracer`.
        n_class: foreground classes; None: the model tells.
        score_thresh: smallest score kept; None: the model's, else 0.05. Set on the model within the traced
            call only.
        iou_thresh: overlap above which suppression drops a box; None: the model's, else 0.5. Models without
            suppression (DETR) ignore it.
        max_detections_per_image: None: the model's, else 300.

    Raises:
        UnknownDetectorError: no family knows the model. ConfigurationProblem: a wrong option, or several
            detectors in the model.
    """

    def __init__(
        self,
        model: nn.Module,
        model_name: str,
        version_name: str,
        target_layers: Mapping[str, str] | None = None,
        additional_fields: Any = None,
        additional_label_fields: Any = None,
        auto_sync: bool = False,
        force_table_recreate: bool = False,
        api_endpoint: str | None = None,
        api_key: str | None = None,
        n_class: int | None = None,
        score_thresh: float | None = None,
        iou_thresh: float | None = None,
        max_detections_per_image: int | None = None,
    ) -> None:
        super().__init__(
            model,
            model_name,
            version_name,
            target_layers,
            additional_fields,
            additional_label_fields,
            auto_sync,
            force_table_recreate,
            api_endpoint,
            api_key,
            n_class=n_class,
            score_thresh=score_thresh,
            iou_thresh=iou_thresh,
            max_detections=max_detections_per_image,
        )


def ObjectDetectionTracer(  # noqa: N802 - the public name of the factory
    model: nn.Module,
    model_name: str,
    version_name: str,
    target_layers: Mapping[str, str] | None = None,
    additional_fields: Any = None,
    additional_label_fields: Any = None,
    auto_sync: bool = False,
    force_table_recreate: bool = False,
    api_endpoint: str | None = None,
    api_key: str | None = None,
    n_class: int | None = None,
    score_thresh: float | None = None,
    iou_thresh: float | None = None,
    max_detections_per_image: int | None = None,
) -> ObjectDetectionTrainingTorchTracer | ObjectDetectionTrainingKerasTracer:
    """The 2D tracer that knows the model; arguments as of `ObjectDetectionTrainingTorchTracer`.

    Keras and TensorFlow models get an `ObjectDetectionTrainingKerasTracer`.

    Raises:
        UnknownDetectorError: no tracer and no adapter knows the model; the message says how to add one.
    """
    kind: Any = (
        ObjectDetectionTrainingKerasTracer
        if is_keras(model)
        else tracer_class(ObjectDetectionTrainingTorchTracer, model)
    )
    made: ObjectDetectionTrainingTorchTracer | ObjectDetectionTrainingKerasTracer = kind(
        model,
        model_name,
        version_name,
        target_layers,
        additional_fields,
        additional_label_fields,
        auto_sync,
        force_table_recreate,
        api_endpoint,
        api_key,
        n_class,
        score_thresh,
        iou_thresh,
        max_detections_per_image,
    )
    return made
