"""OpenPCDet: `attach(model, train_loader, test_loader)` records what its train and eval loops predict.

    from ml_debugger.openpcdet import attach        # in tools/train.py, behind the model is built and wrapped
    attach(model, train_loader, test_loader, model_name="voxelnext", replay_train=0.1)

The loops themselves stay as they are: the model says by its mode whether it is trained or evaluated, and
every call gets its batch. Nothing of the package is imported here. What it relies on:

* `model(batch_dict)` is called once per batch, in training and in `eval_one_epoch`, with the batch on the
  device; every module writes into the batch, and a training into its true boxes: they are read before;
* a walk over a split is as many calls as its loader has batches (the training loop pulls its iterator across
  epochs, so that nothing else tells where one ends), or ends where the model's mode changes;
* in training the model returns losses: those frames are recorded with `replay_train`, which walks them once
  more before the first batch behind the epoch.
"""

from __future__ import annotations

import atexit
import weakref
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from ml_debugger import _service  # noqa: F401 - wires the upload
from mld_core.adapters.registry import unwrap
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.run.options import WrapperOptions

if TYPE_CHECKING:
    from mld_core.tracing.run.recorder import Recorder

__all__ = ["Recording", "attach"]

_EXIT_S = 15.0


class Recording:
    """What `attach` returns.

    Attributes:
        epoch: trained now or last; evaluations are recorded under it. None: nothing was trained. May be set,
            as before each evaluation of a list of checkpoints.
    """

    def __init__(
        self,
        recorder: Recorder,
        model: nn.Module,
        train_loader: Any,
        test_loader: Any,
        start_epoch: int | None,
    ) -> None:
        self.epoch: int | None = None
        self._recorder = recorder
        self._model = model
        self._loaders = {"train": train_loader, "eval": test_loader}
        self._next_epoch = start_epoch or 0
        self._mode: str | None = None  # of the open pass
        self._count = 0
        self._steps = 0
        self._replay_due = False
        self._busy = False
        self._finished = False
        self._handles = []
        if not recorder.disabled:
            self._handles = [
                model.register_forward_pre_hook(self._before, with_kwargs=True),
                model.register_forward_hook(self._after, with_kwargs=True),
            ]
        atexit.register(_at_exit, weakref.ref(self))

    def __del__(self) -> None:
        # The model was local to a function that is over: the account is still owed at the end.
        if not getattr(self, "_finished", True) and self._recorder.session is not None:
            atexit.register(_at_exit, lambda: self)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._busy or self._finished:
            return
        with self._recorder.guard.catch("reading a batch before the call", lost="the rows of that batch"):
            mode = "train" if module.training else "eval"
            if self._mode not in {None, mode}:
                self._close()
            if self._mode is None:
                self._replay()
                self._open(mode)
            self._recorder.begin_batch(_batch_of(args, kwargs))

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._busy or self._mode is None:
            return
        with self._recorder.guard.catch("recording a call", lost="the rows of that batch"):
            batch = _batch_of(args, kwargs)
            self._recorder.record(batch, batch_idx=self._count, global_step=self._steps)
            self._count += 1
            self._steps += self._mode == "train"
            length = _length(self._loaders[self._mode])
            if length is not None and self._count >= length:
                self._close()

    def _open(self, mode: str) -> None:
        self._mode, self._count = mode, 0
        if mode == "train":
            self.epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        split, source = "train" if mode == "train" else "val", self._loaders[mode]
        self._recorder.begin_pass(split, self.epoch, mode=mode, source=source)

    def _close(self) -> None:
        self._replay_due |= self._mode == "train"
        self._mode = None
        self._recorder.end_pass()

    def _replay(self) -> None:
        """The training frames once more, with the weights that the epoch ended with."""
        if not self._replay_due:
            return
        from mld_core.adapters.detection3d.openpcdet import on_device

        self._replay_due, self._busy = False, True
        try:
            device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
            self._recorder.replay(
                self._loaders["train"],
                self.epoch,
                forward=lambda batch: self._model(on_device(batch, device)),
                global_step=self._steps,
            )
        finally:
            self._busy = False

    def finish(self, timeout: float = 300.0) -> None:
        """Records the last epoch's training frames, waits for this rank's durability, tells the account."""
        if self._finished:
            return
        if self._mode is not None:
            self._close()
        self._replay()
        self._end("finished", timeout)

    def _end(self, status: str, timeout: float) -> None:
        self._finished = True
        for handle in self._handles:
            handle.remove()
        self._recorder.finish(status, timeout)


@dataclass(frozen=True)
class _Attached:
    model: nn.Module
    train_loader: Any = None
    test_loader: Any = None
    _: KW_ONLY
    start_epoch: int = 0


@dataclass(frozen=True)
class AttachArguments(WrapperOptions, _Attached):
    """The arguments of `attach`."""

    model: nn.Module = field()  # what is attached to, in its place in front
    task: str | None = field(default="detection3d", kw_only=True)


@arguments_of(AttachArguments)
def attach(given: AttachArguments) -> Recording:
    """Records the training and the evaluations that follow.

    Args: those of every wrapper (docs/usage.md), and: `model`, the detector or what DistributedDataParallel
    made of it (every rank calls `attach`, behind `init_process_group`); `train_loader`, which tells where an
    epoch ends and what `replay_train` walks (None: a change of the model's mode ends it); `test_loader`,
    likewise for evaluations; `start_epoch`, the training loop's own, on a resume.

    Returns:
        The recording: `finish()` it at the end of the script. What is left to the interpreter's exit lacks
        the last epoch's training frames of `replay_train`.
    """
    # Loaded by whoever attaches: importing this file costs little beside PyTorch.
    from mld_core.tracing.run.recorder import Recorder

    recorder = Recorder(**given.less("model", "train_loader", "test_loader", "start_epoch"))
    inner = unwrap(given.model)
    grouped = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
    names = [recorder.resolve_names(inner) if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(names)  # our only collective; every rank is here
    recorder.start(inner, names[0] or {}, rank=rank, world_size=world, framework="openpcdet")
    # Behind the recorder's own hooks: what they keep is there when the call is recorded.
    return Recording(recorder, inner, given.train_loader, given.test_loader, given.start_epoch)


def _batch_of(args: Any, kwargs: Any) -> Any:
    return args[0] if args else kwargs.get("batch_dict")


def _length(loader: Any) -> int | None:
    try:
        return None if loader is None else len(loader)
    except TypeError:
        return None


def _at_exit(recording: weakref.ref[Recording]) -> None:
    found = recording()
    if found is not None and not found._finished:  # noqa: SLF001 - of this module
        if found._mode is not None:  # noqa: SLF001
            found._recorder.abort_pass("the program ended inside it")  # noqa: SLF001
        found._end("finished", _EXIT_S)  # noqa: SLF001
