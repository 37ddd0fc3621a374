"""A loop of your own: `model, train_dl, val_dl = trace(model, train=train_dl, val=val_dl)`.

The loop stays as it is. There are no events: what is recorded comes from the iteration of the loaders and the
model's forward (`ml_debugger._loop`). Ranks come from the process group, where there is one.
DistributedDataParallel, DataParallel and torch.compile are seen through; so are loaders around a `DataLoader`
(timm has one), for the order of their indices.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

try:
    import torch.distributed as dist
except ImportError as error:
    raise ImportError("ml_debugger.torch needs PyTorch: pip install 'ml-debugger[torch]'") from error

from ml_debugger._loop import LoopArguments, LoopRecorder, traced_loaders
from mld_core.tracing.run.arguments import arguments_of

__all__ = ["trace"]


@dataclass(frozen=True)
class _Model:
    model: Any


@dataclass(frozen=True)
class TraceArguments(LoopArguments, _Model):
    """The arguments of `trace`."""

    model: Any = field()  # what is trained, in its place in front
    _: KW_ONLY
    criterion: Any = None


@arguments_of(TraceArguments)
def trace(given: TraceArguments) -> Any:  # noqa: D417 - the arguments are those of the call
    """Record what the model says of the batches of the loaders.

    Call it once, on every rank, after the model is wrapped (DDP, compile) and before the first epoch.

    Args:
        model: what is trained; it is returned as it is.
        train: the loader of the training split. Each walk over it is an epoch; `train.set_epoch(e)` says
            which, where they do not start at 0.
        val: that of the validation split, recorded under the epoch being trained or trained last.
        test: that of the test split, likewise.
        criterion: the module that makes the training's loss, if there is one: its losses name the logits and
            the labels. None: they are found by rules, and mixing inside the step is not noticed
            (docs/usage.md).
        ...: those of every wrapper (docs/usage.md), by keyword.

    Returns:
        `model` and the loaders that were given, in the order train, val, test.

    Raises:
        ConfigurationProblem: an option of the wrong type or range.
        TypeError: an unknown option.
    """
    from mld_core.tracing.run.naming import unwrap_to_trace
    from mld_core.tracing.run.recorder import Recorder

    recorder = Recorder(**given.less("model", "criterion", "train", "val", "test"))
    if given.criterion is not None and not recorder.disabled:
        recorder.watch_criterion(given.criterion)
    inner = unwrap_to_trace(given.model)
    grouped = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
    told = [recorder.resolve_names(inner) if rank == 0 else {}]
    if world_size > 1:
        dist.broadcast_object_list(told)  # our only collective; every rank is here
    loop = LoopRecorder(recorder, inner, told[0], rank=rank, world_size=world_size, framework="torch")
    loop.start()
    return traced_loaders(given, loop)
