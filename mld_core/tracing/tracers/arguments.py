"""The arguments of the tracers called by hand, each task's written once."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mld_core.tracing.guard import ConfigurationProblem


@dataclass(frozen=True)
class TracerArguments:
    """What every tracer takes.

    Args:
        model: the model; it is never changed, its output is passed through untouched.
        model_name: name of the model; records of other names never mix.
        version_name: name of this version.
        target_layers: alias -> module path whose output is recorded as a feature, of a detector per detection
            where its shape allows it; None: the input of the layer that makes the class logits. Keras models
            do without.
        additional_fields: the user's own columns per sample, `{"name", "type", "default"?}` each; their
            values come through `**kwargs` of the call.
        additional_label_fields: likewise, about the label; for detectors per true box, whose values come with
            the truth or as one list per image. Keras models do without.
        auto_sync: upload each pass when it is sealed; else when `wait_for_save` is called, or at the end.
        force_table_recreate: drop what is recorded under these two names and start anew.
        api_endpoint: address of a service; default `MLD_API_ENDPOINT`; none: local records only.
        api_key: key for it; default `MLD_API_KEY`.
    """

    model: Any
    model_name: str
    version_name: str
    target_layers: Mapping[str, str] | None = None
    additional_fields: Any = None
    additional_label_fields: Any = None
    auto_sync: bool = False
    force_table_recreate: bool = False
    api_endpoint: str | None = None
    api_key: str | None = field(default=None, repr=False)

    def for_recorder(self) -> dict[str, Any]:
        """As the keywords of a `Recorder`, which names the unit (image, frame) of no limit."""
        given = {name: value for name, value in vars(self).items() if name != "model"}
        for name in ("max_detections_per_image", "max_detections_per_frame"):
            if name in given:
                given["max_detections"] = given.pop(name)
        return given


@dataclass(frozen=True)
class DetectorArguments(TracerArguments):
    """What the tracers of 2D and 3D detectors take."""

    n_class: int | None = None
    score_thresh: float | None = None
    iou_thresh: float | None = None


@dataclass(frozen=True)
class DetectionArguments(DetectorArguments):
    """What a 2D detection tracer takes beside what every tracer takes (`TracerArguments`).

    Args:
        n_class: foreground classes; None: the model tells.
        score_thresh: smallest score kept; None: the model's, else 0.05. Set on the model within the traced
            call only.
        iou_thresh: overlap above which suppression drops a box; None: the model's, else 0.5. Models without
            suppression (DETR) ignore it.
        max_detections_per_image: None: the model's, else 300.
    """

    max_detections_per_image: int | None = None


@dataclass(frozen=True)
class Detection3DArguments(DetectorArguments):
    """What a 3D detection tracer takes beside the first thirteen of a 2D one (`DetectionArguments`).

    Args:
        max_detections_per_frame: None: the model's, else 300.
        pc_range: x_min, y_min, z_min, x_max, y_max, z_max in metres, where the model does not tell.
        ground_truth_provider: asked, with `get(input_ids, dataset_type)`, on the writer thread, for the
            truth of frames that come without.
    """

    max_detections_per_frame: int | None = None
    pc_range: Sequence[float] | None = None
    ground_truth_provider: Any = None


def epoch_number(n_epoch: Any) -> int | None:
    """The epoch as an int: numpy's and one-element tensors' integers too, which are no equal keys.

    Raises:
        ConfigurationProblem: neither an integer nor None.
    """
    if n_epoch is None:
        return None
    try:
        return operator.index(n_epoch)
    except TypeError:
        raise ConfigurationProblem(
            f"n_epoch={n_epoch!r}: expected an integer, or None without epochs; give int(...) of it."
        ) from None
