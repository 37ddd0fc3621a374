"""Lightning Fabric: `model, train_dl, val_dl = trace(fabric, model, train=train_dl, val=val_dl)`.

Fabric has no events: the loop is the user's, and what is recorded comes from the iteration of the loaders
that `fabric.setup_dataloaders` gave (`ml_debugger._loop`). Under a lower precision the model's own hook sees
what `forward` returns before Fabric converts it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ml_debugger._loop import LoopArguments, LoopRecorder, traced_loaders
from ml_debugger._prepared import watch_moves
from mld_core.tracing.run.arguments import arguments_of

try:
    from lightning.fabric import wrappers
except ImportError as error:
    raise ImportError("ml_debugger.fabric needs Lightning: pip install 'ml-debugger[lightning]'") from error

__all__ = ["trace"]


@dataclass(frozen=True)
class _Prepared:
    fabric: Any
    model: Any


@dataclass(frozen=True)
class TraceArguments(LoopArguments, _Prepared):
    """The arguments of `trace`."""

    model: Any = field()  # the prepared one, in its place in front


@arguments_of(TraceArguments)
def trace(given: TraceArguments) -> Any:  # noqa: D417 - the arguments are those of the call
    """Record what the model says of the batches of the loaders.

    Call it once, on every rank, after `fabric.setup` and `fabric.setup_dataloaders`.

    Args:
        fabric: the launched `Fabric`.
        model: what `fabric.setup` gave; it is returned as it is.
        train: the loader of the training split. Each walk over it is an epoch; `train.set_epoch(e)` says
            which, where they do not start at 0.
        val: that of the validation split, recorded under the epoch being trained or trained last.
        test: that of the test split, likewise.
        ...: those of every wrapper (docs/usage.md), by keyword.

    Returns:
        `model` and the loaders that were given, in the order train, val, test.

    Raises:
        ConfigurationProblem: an option of the wrong type or range.
        TypeError: an unknown option.
    """
    from mld_core.tracing.run.naming import unwrap_to_trace
    from mld_core.tracing.run.recorder import Recorder

    fabric, model = given.fabric, given.model
    recorder = Recorder(**given.less("fabric", "model", "train", "val", "test"))
    watch_moves(recorder, fabric.device, wrappers, "move_data_to_device")
    inner = model.module if wrappers.is_wrapped(model) else model
    inner = unwrap_to_trace(inner, getattr(model, "_forward_module", model))
    names = recorder.resolve_names(inner) if fabric.is_global_zero else {}
    names = fabric.broadcast(names)  # our only collective; every rank is here
    loop = LoopRecorder(
        recorder,
        inner,
        names,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        framework="fabric",
        backward=fabric,
        log=fabric.log_dict,
    )
    loop.start()
    return traced_loaders(given, loop)
