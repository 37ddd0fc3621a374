"""Batches on their way to the model, noted by what stands in the place of a framework's own functions."""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from collections.abc import Callable, Mapping
from functools import wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

if TYPE_CHECKING:
    from mld_core.tracing.capture.forward import LatestForward
    from mld_core.tracing.run.recorder import Recorder

_LOOKS: Final = 8
_REORDERED: Final = (
    "The model was given copies of the batch's samples in another order, so nothing tells which sample a row "
    "is of, and such batches are not recorded: sort or shuffle in the loader or in its collator."
)
_SEVERAL: Final = (
    "In an evaluation the model was called several times for a batch, never with the batch's own tensors, so "
    "nothing tells which call answers it, and such batches are not recorded: call it once, or with the batch."
)

_watching: weakref.WeakSet[Recorder] = weakref.WeakSet()


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
        self.forward.prepared(prepared)
        return prepared


class Copies:
    """Whether nothing tells whose the rows are of a batch of whose tensors the model was given none.

    Of several forwards in an evaluation it is not known which answers the batch. Whether one was given the
    batch's rows in another order is looked at for the first batches, for it may wait for a device.

    Args:
        recorder: its guard tells it, and counts the rows that are lost.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._looks = {True: _LOOKS, False: _LOOKS}
        self._reordered = {True: False, False: False}

    def __call__(self, prepared: Mapping[str, Any], given: Any, forwards: int, evaluating: bool) -> bool:
        """See `LatestForward`."""
        guard, several = self._recorder.guard, evaluating and forwards > 1
        if not self._recorder.listens:
            return False
        if not several and self._looks[evaluating] and not self._reordered[evaluating]:
            self._looks[evaluating] -= 1
            with guard.catch("comparing a batch with what the model was given", lost="nothing"):
                self._reordered[evaluating] = _is_reordered(prepared, given)
        if not several and not self._reordered[evaluating]:
            return False
        tensors = [one for one in prepared.values() if isinstance(one, Tensor) and one.ndim]
        guard.count("batches whose rows nothing tells apart", rows=max(map(len, tensors), default=0))
        guard.tell_once(f"copies:{several}", _SEVERAL if several else _REORDERED)
        return True


def _is_reordered(prepared: Mapping[str, Any], given: Any) -> bool:
    """Whether the same rows stand in another order; of one number a row, labels may look like places."""
    from mld_core.tracing.batch.in_hand import InHand

    hand = InHand([one for one in prepared.values() if isinstance(one, Tensor) and one.ndim > 1], None)
    return not hand.given(given) and hand.reorders(given)


class Preparing:
    """An accelerator's `prepare_data_loader`, which also has the draws of streams counted.

    An evaluation of the Trainer is known to have begun by its first forward, when samples are drawn already.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        loader = type(self.accelerator).prepare_data_loader(self.accelerator, *args, **kwargs)
        with contextlib.suppress(Exception):  # what is repeated is not known then
            from mld_core.tracing.batch.padding import watch_stream

            watch_stream(loader)
        return loader


def count_draws(accelerator: Any) -> None:
    """What is drawn from streams that this accelerator deals out is counted; a method the user set stays."""
    if getattr(accelerator, "num_processes", 1) > 1 and "prepare_data_loader" not in vars(accelerator):
        accelerator.prepare_data_loader = Preparing(accelerator)


def is_compiled(args: Any) -> bool:
    """Whether Accelerate compiles the model: by the arguments, or by `accelerate launch --dynamo_backend`."""
    return bool(args.torch_compile) or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in {
        "",
        "no",
    }


def length_of(loader: Any) -> float:
    """Batches of a loader; without end where it does not tell."""
    try:
        return len(loader)
    except TypeError:
        return math.inf


def referred(value: Any) -> Callable[[], Any]:
    """Gives it for as long as somebody else holds it; what takes no weak reference (a list) is held."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def leaves_host(device: Any) -> bool:
    """Whether batches that are moved to this device leave the host."""
    return getattr(device, "type", "cpu") != "cpu"


def watch_moves(recorder: Recorder, device: Any, module: ModuleType, name: str) -> None:
    """Loaders that give batches on a device: what they were before is noted, and hashed in their stead.

    Args:
        recorder: for as long as one lives that asked for it, batches are noted.
        device: where batches go; on the host nothing is done.
        module: its loaders' `__iter__` calls the function by this name.
        name: of the function, which moves a batch to a device.
    """
    if recorder.disabled or not leaves_host(device):
        return
    lost = "nothing; the inputs' hash is made on the device"
    with recorder.guard.catch("watching how batches go to the device", lost=lost):
        _watching.add(recorder)
        move = getattr(module, name)
        if not hasattr(move, "mld_inner"):
            setattr(module, name, _noting(move, module, name))


def _noting(move: Callable[..., Any], module: ModuleType, name: str) -> Callable[..., Any]:
    """The function itself, which also notes what it was given and gives; it goes when nobody records."""
    from mld_core.tracing.batch.batches import tensors_in
    from mld_core.tracing.batch.fingerprint import moved

    @wraps(move)
    def noted(batch: Any, *args: Any, **kwargs: Any) -> Any:
        before = []
        if _watching:
            with contextlib.suppress(Exception):  # of the user's batch
                before = tensors_in(batch)  # first: some batches are moved in place
        elif getattr(module, name) is noted:
            setattr(module, name, move)
        there = move(batch, *args, **kwargs)
        if before:
            with contextlib.suppress(Exception):
                moved.note(before, tensors_in(there))
        return there

    noted.mld_inner = move  # type: ignore[attr-defined]
    return noted
