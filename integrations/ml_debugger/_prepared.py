"""What a `transformers.Trainer` prepares of a batch, noted on its way to the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mld_core.tracing.capture.forward import LatestForward


class Prepared:
    """A trainer's next `_prepare_inputs`, which also notes what it gives: `compute_loss` takes labels out.

    A plain object, so that a trainer that is pickled or copied (hyperparameter search) still can be.
    """

    def __init__(self, trainer: Any, forward: LatestForward) -> None:
        self.trainer = trainer
        self.forward = forward

    def __call__(self, inputs: Any) -> Any:
        if vars(self.trainer).get("_prepare_inputs") is self:
            del self.trainer._prepare_inputs  # noqa: SLF001
        prepared = type(self.trainer)._prepare_inputs(self.trainer, inputs)  # noqa: SLF001
        self.forward.given = dict(prepared) if isinstance(prepared, Mapping) else {}
        return prepared
