"""Which kind of session records a model."""

from __future__ import annotations

from torch import nn

from mld_core.adapters.registry import UnknownDetectorError
from mld_core.tracing.classifying import ClassificationSession
from mld_core.tracing.detection import DetectionSession
from mld_core.tracing.detectors import find_detector
from mld_core.tracing.guard import ConfigurationProblem
from mld_core.tracing.session import Session


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
