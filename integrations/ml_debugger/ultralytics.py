"""Ultralytics: `attach(YOLO(...))` records every box of every image, through the trainer's own callbacks.

    from ml_debugger.ultralytics import attach
    model = YOLO("yolo11n.pt")
    attach(model, model_name="traffic")
    model.train(data="coco8.yaml", epochs=3)

The callbacks only translate events; what is recorded, and how, is in `mld_core.tracing.run.recorder`.
Nothing of the package is imported here. What they rely on:

* the trainer builds its own model: hooks are set at `on_pretrain_routine_end`, which every rank reaches, and
  taken off before a checkpoint pickles the model;
* a callback gets no batch: in training the model itself is called with it, in validation
  `validator.update_metrics` is, with the detections that the package's own metric sees: those are recorded;
* validation runs the moving average of the weights, another module, and `on_val_end` comes on rank 0 only;
* the validation of the best weights after the last epoch is of no epoch: it is not recorded;
* `model.val()` and `model.predict()` by hand run a copy of the model: `validator.init_metrics` is given it;
* `teardown` comes on every rank, also after an exception.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn

from ml_debugger import _service  # noqa: F401 - wires the upload
from ml_debugger._runfile import RUN_FILE, read_run_file, write_run_file
from mld_core.adapters.base import OwnFinals
from mld_core.adapters.registry import unwrap
from mld_core.adapters.ultralytics.own import predicted, validated
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.run.options import WrapperOptions

if TYPE_CHECKING:
    from mld_core.tracing.run.recorder import Recorder

__all__ = ["attach", "attached"]

_EVENTS = (
    "on_pretrain_routine_end",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_fit_epoch_end",
    "on_model_save",
    "on_train_end",
    "on_val_start",
    "on_val_batch_start",
    "on_val_batch_end",
    "on_predict_start",
    "on_predict_batch_start",
    "on_predict_postprocess_end",
    "teardown",
)
_EXIT_S = 15.0


@dataclass(frozen=True)
class _Attached:
    model: Any


@dataclass(frozen=True)
class AttachArguments(WrapperOptions, _Attached):
    """The arguments of `attach`: those of every wrapper, less those of 3D."""

    model: Any = field()  # what is attached to, in its place in front
    task: str | None = field(default="detection", kw_only=True)
    pc_range: Any = field(default=None, init=False)
    ground_truth_provider: Any = field(default=None, init=False)


@arguments_of(AttachArguments)
def attach(given: AttachArguments) -> Any:
    """Records what follows: training, validation and prediction of a `YOLO`, an `RTDETR` or a trainer.

    Args: as of every wrapper (docs/usage.md), less those of 3D. `score_thresh` and the like filter what is
    recorded; the package's own metrics see what they always see. Without them a validation is recorded as its
    own metric sees it (`conf`, `iou` and `max_det` of the validator, several classes of one anchor included).

    Passes of `model.val()` and `model.predict()` by hand are of no epoch. The calls of `predict` are one
    pass, which ends with the program or before something else begins.

    Returns:
        `model`.
    """
    from mld_core.tracing.run.recorder import Recorder

    recorder = Recorder(**given.less("model"))
    _make_way(given.model)
    if not recorder.disabled:
        _add(given.model, _Callbacks(recorder))
    return given.model


def join(owner: Any) -> None:
    """What `mld run` calls for each new model and trainer: attaches, unless callbacks of ours are there.

    A model made inside a training (the check of mixed precision makes one) is a tool of the trainer's.
    """
    from mld_core.tracing.run.recorder import Recorder

    if not attached(owner) and not _in_training(owner):
        recorder = Recorder(task="detection")
        if not recorder.disabled:
            _add(owner, _Callbacks(recorder, joined=True))


def attached(model: Any) -> bool:
    """Whether `model`, or a trainer, has callbacks of ours."""
    return bool(_ours(model))


def _add(owner: Any, callbacks: _Callbacks) -> None:
    atexit.register(_at_exit, weakref.ref(callbacks))
    for event in _EVENTS:
        owner.add_callback(event, getattr(callbacks, event))


def _ours(owner: Any) -> list[_Callbacks]:
    told = getattr(owner, "callbacks", {}).get("teardown", ())
    return [found for one in told if isinstance(found := getattr(one, "__self__", None), _Callbacks)]


def _make_way(owner: Any) -> None:
    """Takes away what `mld run` added: the user's own `attach` says how to record."""
    joined = [callbacks for callbacks in _ours(owner) if callbacks.joined]
    for event in _EVENTS if joined else ():
        told = owner.callbacks[event]
        told[:] = [one for one in told if getattr(one, "__self__", None) not in joined]


def _in_training(owner: Any) -> bool:
    """Whether a trainer's method, of another object than `owner`, is being run."""
    frame: Any = sys._getframe(1)  # noqa: SLF001 - the model is not told who makes it
    while frame is not None:
        caller = frame.f_locals.get("self")
        if caller is not owner and any(kind.__name__ == "BaseTrainer" for kind in type(caller).__mro__):
            return True
        frame = frame.f_back
    return False


class _Callbacks:
    """What the package calls. Travels, by pickle, to the processes of a training on several devices."""

    def __init__(self, recorder: Recorder, *, joined: bool = False) -> None:
        self.joined = joined  # added by `mld run`
        self._recorder = recorder
        self._trainer: Any = None
        self._open: list[str] = []
        self._step = 0
        self._batch = 0
        self._restore: list[tuple[Any, str]] = []
        self._finished = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None, "_restore": [], "_open": []}

    # training

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        """The process group exists, weights and optimizer are loaded, no forward has run yet."""
        with self._recorder.guard.catch("starting to record", lost="all records of this run"):
            rank, world = max(int(os.environ.get("RANK", "-1")), 0), max(int(trainer.world_size or 1), 1)
            self._end_prediction()
            if self._recorder.enabled:
                self._recorder.renew(same_run=False)
            self._trainer = trainer
            self._start(unwrap(trainer.model), rank, world)

    def _start(self, model: Any, rank: int = 0, world: int = 1) -> None:
        self._finished = False
        settled = [self._settle(self._trainer, model) if rank == 0 else None]
        if world > 1 and dist.is_initialized():
            dist.broadcast_object_list(settled)  # our only collective; every rank is here
        names, state = settled[0] or ({}, {})
        if rank != 0:
            self._recorder.restore(state)
        self._recorder.start(model, names, rank=rank, world_size=world, framework="ultralytics")

    def _settle(self, trainer: Any, model: Any) -> tuple[dict[str, str], dict[str, Any]]:
        state: dict[str, Any] = {}
        # Nothing may raise on this rank alone: the others wait in the broadcast.
        with self._recorder.guard.catch(f"reading {RUN_FILE}", lost="the run goes on under a new version"):
            state = read_run_file(trainer.save_dir) if getattr(trainer, "start_epoch", 0) else {}
        self._recorder.restore(state)
        return self._recorder.resolve_names(model), state

    def on_train_epoch_start(self, trainer: Any) -> None:
        """A walk over the training split begins, or begins anew with a smaller batch."""
        while self._open:
            self._open.pop()
            self._recorder.abort_pass("the epoch began anew")
        self._recorder.attach(unwrap(trainer.model))
        self._begin("train", trainer.epoch, "train", getattr(trainer, "train_loader", None))

    def _begin(self, split: str, n_epoch: int | None, mode: str, loader: Any = None) -> None:
        self._open.append(split)
        self._batch = 0
        self._recorder.begin_pass(split, n_epoch, mode=mode, source=loader)

    def on_train_batch_start(self, trainer: Any) -> None:
        """The average of the weights counts the optimizer's steps."""
        self._step = int(getattr(getattr(trainer, "ema", None), "updates", self._step))
        self._recorder.begin_batch()

    def on_train_batch_end(self, trainer: Any) -> None:
        """The model itself was called with the batch."""
        self._record(self._recorder.heard_input)

    def _record(self, batch: Any, final: OwnFinals | None = None) -> None:
        self._recorder.record(batch, final, batch_idx=self._batch, global_step=self._step)
        self._batch += 1

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Seal the pass; the epoch's validation comes after this event."""
        self._end("train")
        net = unwrap(trainer.model)
        self._recorder.replay(
            trainer.train_loader,
            trainer.epoch,
            forward=lambda batch: net(trainer.preprocess_batch(batch)["img"]),
            global_step=self._step,
        )
        self._recorder.detach()

    def _end(self, split: str) -> None:
        if self._open and self._open[-1] == split:
            self._open.pop()
            self._recorder.end_pass()

    def on_fit_epoch_end(self, trainer: Any) -> None:
        """The epoch's validation is over on every rank."""
        self._end_validation()

    def on_model_save(self, trainer: Any) -> None:
        """Beside the checkpoint goes what a resumed training needs to find its run; on rank 0."""
        state = self._recorder.state()
        if state:
            write_run_file(self._recorder, trainer.save_dir, dict(state))

    def on_train_end(self, trainer: Any) -> None:
        """On rank 0, after the validation of the best weights."""
        self._finish("finished")

    def teardown(self, trainer: Any) -> None:
        """On every rank, also after an exception."""
        self._finish("exception" if self._open else "finished")

    def _finish(self, status: str) -> None:
        if not self._finished:
            self._finished = True
            self._open.clear()
            self._give_back()
            self._recorder.finish(status)
        self._trainer = None

    # validation

    def on_val_start(self, validator: Any) -> None:
        """Within a training: the averaged weights are about to be validated. Else: the model by hand."""
        trainer = self._trainer
        if trainer is None:
            self._wrap(validator, "init_metrics", lambda model: self._begin_alone(validator, model))
        elif validator.training:
            with self._recorder.guard.catch("beginning a val pass", lost="the records of that pass"):
                average = getattr(getattr(trainer, "ema", None), "ema", None)
                self._recorder.attach(unwrap(trainer.model) if average is None else average)
                self._begin("val", trainer.epoch, "eval", validator.dataloader)
                self._watch(validator)

    def _begin_alone(self, validator: Any, model: Any) -> None:
        with self._recorder.guard.catch("beginning a pass", lost="the records of that pass"):
            self._end_prediction()
            self._start(network_of(model))
            split = str(getattr(validator.args, "split", None) or "val")
            self._begin(split, None, "eval", validator.dataloader)
            self._watch(validator)

    def _watch(self, validator: Any) -> None:
        """`update_metrics` is the one place that is given the batch, and what the metric sees of it."""

        def seen(preds: Any, batch: Any) -> None:
            final = None
            with self._recorder.guard.catch(
                "reading the validator's detections", lost="nothing; the model's output is read instead"
            ):
                final = validated(validator.args, preds, batch)
            self._record(batch, final)

        self._wrap(validator, "update_metrics", seen)

    def _wrap(self, owner: Any, name: str, before: Callable[..., None]) -> None:
        """From now on `owner.name` is told to `before` first."""
        inner = getattr(owner, name)

        def told(*args: Any) -> Any:
            before(*args)
            return inner(*args)

        setattr(owner, name, told)
        self._restore.append((owner, name))

    def on_val_batch_start(self, validator: Any) -> None:
        """Arm the capture."""
        if self._restore:
            self._recorder.begin_batch()

    def on_val_batch_end(self, validator: Any) -> None:
        """The last batch ends the walk, also on ranks that see no `on_val_end`."""
        with self._recorder.guard.catch("counting validation batches"):
            if self._restore and validator.batch_i + 1 >= len(validator.dataloader):
                self._end_validation()

    def _end_validation(self) -> None:
        if self._restore:
            self._give_back()
            self._end(self._open[-1] if self._open else "")
            self._recorder.detach()
            if self._trainer is None:
                self._finish("finished")

    # prediction by hand

    def on_predict_start(self, predictor: Any) -> None:
        """The model is set up; a pass that is open goes on."""
        if self._trainer is not None:
            return
        with self._recorder.guard.catch("beginning a predict pass", lost="the records of that pass"):
            net = network_of(predictor.model)
            if "predict" not in self._open:
                self._start(net)
                self._begin("predict", None, "eval")
            self._recorder.attach(net)

    def on_predict_batch_start(self, predictor: Any) -> None:
        """Arm the capture."""
        if "predict" in self._open:
            self._recorder.begin_batch()

    def on_predict_postprocess_end(self, predictor: Any) -> None:
        """Results are made, of the images as given; files are their own ids."""
        if "predict" in self._open:
            with self._recorder.guard.catch("reading results", lost="the rows of that batch"):
                files = is_files(predictor.source_type) and predictor.dataset.mode == "image"
                batch = {"img": self._recorder.heard_input}
                names = {"im_file": [str(path) for path in predictor.batch[0]]} if files else {}
                self._record({**batch, **names}, predicted(predictor.args, predictor.results))

    def _end_prediction(self) -> None:
        if "predict" in self._open:
            self._end("predict")
            self._finish("finished")

    def at_exit(self) -> None:
        """The program ends: what was predicted by hand is sealed."""
        self._end_prediction()

    def _give_back(self) -> None:
        for owner, name in self._restore:
            vars(owner).pop(name, None)
        self._restore.clear()


def network_of(model: Any) -> Any:
    """The network in what the package runs it by (`AutoBackend`), or the model itself."""
    inner = getattr(model, "model", None)
    return inner if isinstance(inner, nn.Module) and not isinstance(inner, nn.Sequential) else model


def is_files(source: Any) -> bool:
    """Whether what is predicted are files, not arrays or streams, whose names tell nothing."""
    return not any(getattr(source, kind, False) for kind in ("stream", "screenshot", "from_img", "tensor"))


def _at_exit(reference: weakref.ref[_Callbacks]) -> None:
    callbacks = reference()
    if callbacks is not None:
        callbacks.at_exit()
