"""3D detection tracers: called by hand, one batch of frames at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from mld_core.tracing.detection_tracer import DetectionTorchTracer, DetectionTrainingTracer, tracer_class
from mld_core.tracing.detectors import has_detector


class ObjectDetection3DTorchTracer(DetectionTorchTracer):
    """What 3D detection tracers of PyTorch models have in common."""

    task: ClassVar[str] = "detection3d"

    @staticmethod
    def detect(model: Any) -> bool:
        """Whether an adapter of a 3D family knows the model."""
        return has_detector(model, "detection3d")


class ObjectDetection3DTrainingTorchTracer(DetectionTrainingTracer, ObjectDetection3DTorchTracer):
    """Records a 3D detector's final boxes, logits, features and the true boxes, in one's own loop.

    Arguments as of `ObjectDetectionTrainingTorchTracer`, and

    Args:
        max_detections_per_frame: None: the model's, else 300.
        pc_range: x_min, y_min, z_min, x_max, y_max, z_max in metres, where the model does not tell.
        ground_truth_provider: asked, with `get(input_ids, dataset_type)`, on the writer thread, for the
            truth of frames that come without.
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
        max_detections_per_frame: int | None = None,
        pc_range: Sequence[float] | None = None,
        ground_truth_provider: Any = None,
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
            max_detections=max_detections_per_frame,
            pc_range=pc_range,
            ground_truth_provider=ground_truth_provider,
        )


def ObjectDetection3DTracer(  # noqa: N802 - the public name of the factory
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
    max_detections_per_frame: int | None = None,
    pc_range: Sequence[float] | None = None,
    ground_truth_provider: Any = None,
) -> ObjectDetection3DTrainingTorchTracer:
    """The 3D tracer that knows the model; arguments as of `ObjectDetection3DTrainingTorchTracer`.

    Raises:
        UnknownDetectorError: no tracer and no adapter knows the model; the message says how to add one.
    """
    kind: Any = tracer_class(ObjectDetection3DTrainingTorchTracer, model)
    made: ObjectDetection3DTrainingTorchTracer = kind(
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
        max_detections_per_frame,
        pc_range,
        ground_truth_provider,
    )
    return made
