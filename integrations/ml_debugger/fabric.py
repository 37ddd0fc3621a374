"""Lightning Fabric: `model, train_dl, val_dl = trace(fabric, model, train=train_dl, val=val_dl)`.

Fabric has no events: the loop is the user's, and what is recorded comes from the iteration of the loaders
that `fabric.setup_dataloaders` gave (`ml_debugger._loop`). Under a lower precision the model's own hook sees
what `forward` returns before Fabric converts it.
"""

from __future__ import annotations

from typing import Any

from ml_debugger._loop import LoopRecorder, TracedLoader
from mld_core.tracing.run.recorder import Recorder

try:
    from lightning.fabric.wrappers import is_wrapped
except ImportError as error:
    raise ImportError("ml_debugger.fabric needs Lightning: pip install 'ml-debugger[lightning]'") from error

__all__ = ["trace"]


def trace(
    fabric: Any, model: Any, *, train: Any = None, val: Any = None, test: Any = None, **options: Any
) -> Any:
    """Record what the model says of the batches of the loaders.

    Call it once, on every rank, after `fabric.setup` and `fabric.setup_dataloaders`.

    Args:
        fabric: the launched `Fabric`.
        model: what `fabric.setup` gave; it is returned as it is.
        train: the loader of the training split. Each walk over it is an epoch; `train.set_epoch(e)` says
            which, where they do not start at 0.
        val: that of the validation split, recorded under the epoch being trained or trained last.
        test: that of the test split, likewise.
        **options: those of every wrapper (docs/usage.md).

    Returns:
        `model` and the loaders that were given, in the order train, val, test.

    Raises:
        ConfigurationProblem: an option of the wrong type or range.
        TypeError: an unknown option.
    """
    recorder = Recorder(**options)
    inner = model.module if is_wrapped(model) else model
    names = recorder.resolve_names(inner) if fabric.is_global_zero else {}
    names = fabric.broadcast(names)  # our only collective; every rank is here
    loop = LoopRecorder(
        recorder,
        inner,
        names,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        framework="fabric",
    )
    loop.start()
    given = {"train": train, "val": val, "test": test}
    traced = [TracedLoader(loader, split, loop) for split, loader in given.items() if loader is not None]
    return (model, *traced) if traced else model
