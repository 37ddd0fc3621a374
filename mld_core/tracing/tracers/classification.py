"""Classification tracers: called by hand, one batch at a time."""

from __future__ import annotations

from mld_core.tracing.tracers.base import TorchTracer, TrainingTracer


class ClassificationTorchTracer(TorchTracer):
    """What classification tracers of PyTorch models have in common."""


class ClassificationTrainingTorchTracer(TrainingTracer, ClassificationTorchTracer):
    """Records a classifier's logits, features, predictions and losses, sample by sample, in one's own loop.

    Examples:
        >>> import tempfile, torch
        >>> from unittest import mock
        >>> with tempfile.TemporaryDirectory() as home, mock.patch.dict("os.environ", {"MLD_HOME": home}):
        ...     tracer = ClassificationTrainingTorchTracer(torch.nn.Linear(8, 3), "net", "v1")
        ...     output = tracer(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]), ["a", "b", "c", "d"], "val", 0)
        ...     tracer.wait_for_save(0)
        >>> tuple(output.shape)
        (4, 3)
    """


ClassificationTracer = ClassificationTrainingTorchTracer
