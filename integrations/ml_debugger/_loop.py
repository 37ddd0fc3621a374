"""Passes of a hand-written loop, from nothing but the iteration of its loaders; for Accelerate and Fabric.

A walk begins when a traced loader is iterated and ends when it is exhausted or left by `break`. The batch
in hand is committed when the next one is asked for, when the walk ends, or when another traced loader is
iterated inside the loop's body. A loop that an exception ends looks like one left by `break`: which of the
two it was is settled by whether the program goes on. A pass that ended the program stays partial.
"""

from __future__ import annotations

import atexit
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from ml_debugger import _service  # noqa: F401 - wires the upload
from mld_core.tracing.run.options import RecorderOptions

if TYPE_CHECKING:
    from mld_core.tracing.run.recorder import Recorder

_EXIT_S = 15.0

__all__ = ["LoopArguments", "LoopRecorder", "TracedLoader", "traced_loaders"]


@dataclass(frozen=True)
class _Loaders:
    _: KW_ONLY
    train: Any = None
    val: Any = None
    test: Any = None


@dataclass(frozen=True)
class LoopArguments(RecorderOptions, _Loaders):
    """What every `trace` takes behind the framework's object and the model, all by keyword."""

    _: KW_ONLY
    model_name: str | None = None
    version_name: str | None = None


@dataclass(eq=False)
class _Walk:
    """One iteration of a traced loader. `pending`: its batch in hand is not committed yet.

    `unheard`: batches in which the traced model made no forward. `unclear`: a batch of the walk around it was
    in hand, without a forward, as it began.
    """

    split: str
    batch: Any = None
    batch_idx: int = 0
    unheard: int = 0
    pending: bool = False
    unclear: bool = False


class LoopRecorder:
    """What the traced loaders of one `trace` call share.

    Args:
        recorder: records.
        model: what is trained, unwrapped.
        names: what rank 0's `recorder.resolve_names` gave, broadcast.
        rank: this process's rank.
        world_size: number of processes.
        framework: name of the framework.
        backward: the object whose `backward` the training's losses are given to.
        stepped: says after a training batch whether the optimizer made a step in it.
        log: gives figures, at a number of optimizer steps, to the loggers of the framework.
    """

    def __init__(
        self,
        recorder: Recorder,
        model: torch.nn.Module,
        names: dict[str, str],
        *,
        rank: int,
        world_size: int,
        framework: str,
        backward: Any = None,
        stepped: Callable[[], bool] = lambda: True,
        log: Callable[[dict[str, float], int], None] | None = None,
    ) -> None:
        self.recorder = recorder
        self.names = names
        self.epoch: int | None = None  # the epoch being trained or trained last
        self.steps = 0
        self.finished = False
        self.resume_step: int | None = None
        self._model = model
        self._world = {"rank": rank, "world_size": world_size, "framework": framework}
        self._backward = backward
        self._stepped = stepped
        self._log = log
        self._walks: list[_Walk] = []
        # Passes left early: by a `break`, or by an exception, which looks the same until the program goes on.
        self._left: list[Any] = []
        atexit.register(_finish, weakref.ref(self))

    def __del__(self) -> None:
        # Model and loaders were local to a function that is over: the account is still owed at the end.
        if not getattr(self, "finished", True) and self.recorder.session is not None:
            atexit.register(self.at_exit)

    def start(self) -> None:
        """Sets the hooks; does nothing while recording."""
        self.finished = False
        if not self.recorder.enabled and not self.recorder.failed_to_start:
            self.recorder.start(self._model, self.names, **self._world)

    @property
    def training(self) -> bool:
        """Whether a walk over the training split is open."""
        return any(walk.split == "train" for walk in self._walks)

    def walk(self, traced: TracedLoader) -> Iterator[Any]:
        """Iterates a loader and tells the recorder."""
        walk = self._begin(traced)
        try:
            # Held: the order of a loader whose iterator is gone is not proven for the batch in hand.
            iterator = iter(traced.loader)
            for batch in iterator:
                self._arm(walk, batch)
                yield batch
                self._settle()
                self._part(walk)
                self._commit(walk)
        except GeneratorExit:
            self._end(walk, self._leave)
            raise
        except BaseException as error:
            self._drop(walk, f"{type(error).__name__} in the loader")
            raise
        self._end(walk, self.recorder.end_pass)
        if traced.split == "train":
            loader = getattr(traced.loader, "base_dataloader", traced.loader)
            self.recorder.replay(loader, self.epoch, global_step=self.steps)

    def _begin(self, traced: TracedLoader) -> _Walk:
        guard, walk = self.recorder.guard, _Walk(traced.split)
        with guard.catch("beginning a pass", lost="the records of that pass"):
            self.start()
            self._settle()
            for stale in [w for w in self._walks if w.split == walk.split]:
                self._drop(stale, "left by an exception")
            self.commit()
            n_epoch, traced.next_epoch = traced.next_epoch, None
            train = traced.split == "train"
            if train:
                after = 0 if self.epoch is None else self.epoch + 1
                self.epoch = after if n_epoch is None else n_epoch
            walk.unclear = bool(self._walks) and self._walks[-1].pending
            self._walks.append(walk)
            self.recorder.begin_pass(
                traced.split,
                self.epoch if n_epoch is None else n_epoch,
                mode="train" if train else "eval",
                loader=traced.index_loader(),
                source=traced.dealing(),
                resume_step=self.resume_step if train else None,
            )
            if train:
                self.resume_step = None
        self._hand_over()
        return walk

    def _hand_over(self) -> None:
        """What was evaluated since goes to the framework's loggers."""
        if self._log is not None and self.recorder.options.log_to_trainer:
            log = self._log
            self.recorder.hand_over(lambda figures: log(figures, self.steps))

    def _arm(self, walk: _Walk, batch: Any) -> None:
        if walk in self._walks:
            walk.batch, walk.pending = batch, True
            self.recorder.begin_batch(batch)
            if walk.split == "train":
                self.recorder.watch_loss(self._backward)

    def commit(self) -> None:
        """Records the batch in hand now, as when a checkpoint is saved after its step."""
        if self._walks and self.recorder.heard:
            self._commit(self._walks[-1])

    def _commit(self, walk: _Walk) -> None:
        """Records the walk's batch in hand, once."""
        if not walk.pending or not self._walks or walk is not self._walks[-1]:
            return
        batch, walk.batch, walk.pending = walk.batch, None, False
        if not self.recorder.heard and not self.recorder.muted:
            self.recorder.skip_batch(batch)
            walk.unheard += 1
            return
        self.recorder.record(batch, batch_idx=walk.batch_idx, global_step=self.steps)
        walk.batch_idx += 1
        if walk.split == "train":
            with self.recorder.guard.catch("counting optimizer steps", lost="the step numbers"):
                self.steps += bool(self._stepped())
            self._hand_over()

    def _part(self, walk: _Walk) -> None:
        """Goes on with the walk alone where another one began inside it and is not over.

        Of which batch a forward is says the loss, so a training is gone on with; else nothing does.
        """
        if walk not in self._walks or walk is self._walks[-1]:
            return
        inner = self._walks[self._walks.index(walk) + 1]
        if inner is self._walks[-1] and not inner.unclear:
            self._commit(inner)
        self._drop(inner, "walked at the same time as another")
        lost = [inner.split] if walk.split == "train" else [walk.split, inner.split]
        self.recorder.guard.tell_once(
            f"at once:{walk.split}:{inner.split}",
            f"The loaders of {walk.split!r} and {inner.split!r} are walked at the same time, so whose batch "
            f"a forward is of cannot be known: from here on nothing of {' and '.join(map(repr, lost))} is "
            "recorded. Give trace one of the two.",
        )
        if walk.split != "train":
            self._drop(walk, "walked at the same time as another")
        elif walk.pending:  # the inner walk's batch was in hand, too
            self.recorder.skip_batch(walk.batch)
            walk.batch, walk.pending = None, False

    def _end(self, walk: _Walk, close: Callable[[], None]) -> None:
        if walk not in self._walks:
            return  # closed already, with what was around it
        while self._walks[-1] is not walk:
            self._drop(self._walks[-1], "left inside another pass")
        self._commit(walk)
        self._walks.remove(walk)
        if walk.unheard and not walk.batch_idx and self.recorder.listens:
            self._tell_unheard(walk)
        close()
        if self._walks and self._walks[-1].pending and walk.split != "train" and not walk.unheard:
            # Its forward is still to come: it is no batch that was kept beside a training, and nobody else's
            # forward is awaited.
            self._arm(self._walks[-1], self._walks[-1].batch)

    def _tell_unheard(self, walk: _Walk) -> None:
        """A walk of which nothing is recorded is said: the loop may call another model there."""
        split, name = walk.split, type(self._model).__name__
        self.recorder.guard.tell_once(
            f"unheard:{split}",
            f"The traced {name} made no forward in the {walk.unheard} batches of a walk over {split!r}: "
            "nothing of that walk is recorded. If the loop calls another model there (an average of weights, "
            "a copy), trace that one, too, with a loader of its own and another model_name.",
        )

    def _leave(self) -> None:
        self._left.append(self.recorder.leave_pass())

    def _settle(self) -> None:
        """The program goes on, so the loops that were left before were left by `break`."""
        while self._left:
            self.recorder.settle_pass(self._left.pop(0))

    def _drop(self, walk: _Walk, reason: str) -> None:
        while walk in self._walks:
            self._walks.pop().pending = False
            self.recorder.abort_pass(reason)

    def finish(self, timeout: float = 300.0) -> None:
        """Waits for this rank's durability, then the account; walks still open stay partial."""
        self._settle()
        self._close(timeout)

    def at_exit(self) -> None:
        """The program ends: by an exception, if the interpreter has shown one."""
        if getattr(sys, "last_value", None) is None:
            self._settle()
        self._close(_EXIT_S)

    def _close(self, timeout: float) -> None:
        status = "exception" if self._walks or self._left else "finished"
        self._walks, self._left, self.finished = [], [], True
        self.recorder.finish(status, timeout)


class TracedLoader:
    """A loader whose iteration is recorded; everything else is the loader's own.

    Args:
        loader: the prepared loader.
        split: the split its walks are recorded as.
        loop: shared by the loaders of one `trace` call.
    """

    def __init__(self, loader: Any, split: str, loop: LoopRecorder) -> None:
        self.loader = loader
        self.split = split
        self.recording = loop
        self.next_epoch: int | None = None

    def __iter__(self) -> Iterator[Any]:
        return self.recording.walk(self)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "loader" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.loader, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Frameworks ask `isinstance(loader, ...)`: a traced loader answers as the loader would."""
        return _seen_as(type(self.loader), isinstance(self.loader, DataLoader))

    def index_loader(self) -> Any:
        """The loader whose batch sampler draws this rank's indices; None where another rank draws them."""
        if any(kind.__name__ == "DataLoaderDispatcher" for kind in type(self.loader).__mro__):
            return None
        inner = getattr(self.loader, "base_dataloader", self.loader)
        inner = getattr(inner, "_dataloader", inner)
        while not isinstance(inner, DataLoader) and hasattr(inner, "loader"):
            inner = inner.loader  # timm's PrefetchLoader, torchvision's, and other wrappers
        return inner

    def dealing(self) -> Any:
        """The loader that knows what ranks are dealt: Accelerate's own, behind which rank 0's may lie."""
        dealt = any(kind.__name__ == "DataLoaderDispatcher" for kind in type(self.loader).__mro__)
        return self.loader if dealt else self.index_loader()

    def set_epoch(self, epoch: int) -> None:
        """The next walk is that of `epoch`."""
        self.next_epoch = epoch
        inner = getattr(self.loader, "set_epoch", None)
        if inner is not None:
            inner(epoch)

    def traced(self, loader: Any) -> TracedLoader:
        """Another loader of the same split, such as one that skips the first batches on a resume."""
        return TracedLoader(loader, self.split, self.recording)


_CLASSES: dict[type, type] = {}


def _seen_as(kind: type, is_loader: bool) -> type:
    """`kind`, or for Accelerate's adapters, which only pose as a `DataLoader`, a class that is both."""
    if not is_loader or issubclass(kind, DataLoader):
        return kind
    if kind not in _CLASSES:
        _CLASSES[kind] = type(kind.__name__, (kind, DataLoader), {})
    return _CLASSES[kind]


def _finish(reference: weakref.ref[LoopRecorder]) -> None:
    loop = reference()
    if loop is not None:
        loop.at_exit()


def traced_loaders(given: LoopArguments, loop: LoopRecorder) -> Any:
    """What `trace` returns: the model, and the loaders that were given, traced."""
    loaders = {"train": given.train, "val": given.val, "test": given.test}
    traced = [TracedLoader(loader, split, loop) for split, loader in loaders.items() if loader is not None]
    return (given.model, *traced) if traced else given.model
