"""Which kind of session records a model."""

from __future__ import annotations

from torch import nn

from mld_core.adapters.registry import UnknownDetectorError
from mld_core.tracing.capture.detectors import find_detector
from mld_core.tracing.guard import ConfigurationProblem
from mld_core.tracing.run.classifying import ClassificationSession
from mld_core.tracing.run.detection import DetectionSession
from mld_core.tracing.run.session import Session


def session_class(task: str | None, model: nn.Module) -> type[Session]:
    """The session that records a task; None is inferred from the model.

    Raises:
        ConfigurationProblem: a detection task, and no detector of a known family in the model; or several
            detectors in it.
    """
    if task == "classification":
        return ClassificationSession
    try:
        find_detector(model, task)
    except UnknownDetectorError as error:
        if task is None:
            return ClassificationSession
        raise ConfigurationProblem(f"task={task!r}: {error}") from error
    return DetectionSession
