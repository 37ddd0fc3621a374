"""Lightning: `Trainer(callbacks=[MLDebuggerCallback()])` records every prediction of every sample.

Works with `lightning.pytorch` and with `pytorch_lightning`. The callback only translates events; what is
recorded, and how, is in `mld_core.tracing.run.recorder`. The order of Lightning's events it relies on:

* `setup` comes before any loader is made: loaders are tapped there, as the strategy processes them;
* batches come to the events on their device: the strategy, which moves them, shows them as loaders gave them;
* `load_state_dict` comes between `setup` and `on_fit_start`, so the run's name is settled at the latter;
* validation runs *inside* the train epoch, so passes nest;
* `on_train_epoch_start` is not fired on a resume in mid-epoch;
* after an exception `on_exception` is all that is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import weakref
from typing import Any

from mld_core.tracing.batch.taps import install_tap, remove_tap
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.run.options import WrapperOptions

__all__ = ["MLDebuggerCallback"]


_MODULES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}


def _loaded_bases() -> tuple[type, ...]:
    """`Callback` of each Lightning that was imported so far."""
    return tuple(sys.modules[name].Callback for name in _MODULES.values() if name in sys.modules)


def _first_base() -> tuple[type, ...]:
    """Where neither was imported yet: the one that is installed, `lightning` of the two."""
    for package, module in _MODULES.items():
        if importlib.util.find_spec(package):
            return (importlib.import_module(module).Callback,)
    raise ImportError("ml_debugger.lightning needs Lightning: pip install 'ml-debugger[lightning]'")


def _late_bases() -> tuple[type, ...]:
    """Of what was imported after this file. A trainer takes a bare callback if it is one of its own kind.

    `lightning` installs `pytorch_lightning` beside it, and to import both costs a second more: so the base of
    the other one joins when the program has imported it.
    """
    return tuple(base for base in _loaded_bases() if not issubclass(MLDebuggerCallback, base))


class MLDebuggerCallback(*(_loaded_bases() or _first_base())):  # type: ignore[misc]
    """Records train, val, test and predict passes of a Lightning `Trainer`; no argument is required.

    The arguments are those of every wrapper (docs/usage.md). Errors of ours never reach the trainer.

    Example:
        >>> callback = MLDebuggerCallback(model_name="digits", splits=["val"])
        >>> callback.state_dict()
        {}
    """

    @arguments_of(WrapperOptions)
    def __init__(self, options: WrapperOptions) -> None:
        MLDebuggerCallback.__bases__ += _late_bases()
        super().__init__()
        # Loaded by whoever makes a callback: importing this file costs little beside Lightning.
        from ml_debugger import _service  # noqa: F401 - wires the upload
        from mld_core.tracing.run.recorder import Recorder

        self._recorder = Recorder(**vars(options))
        self._logs = options.log_to_trainer
        self._epoch: int | None = (
            None  # the epoch last trained; Lightning's own counter is one past it after fit
        )
        self._batch_step = 0
        self._trained = False  # a train pass was recorded, by this fit or by one before
        self._loaded = False  # a checkpoint was loaded for what comes next
        self._resumed = False  # likewise, and it had our state
        self._open: list[str] = []
        self._tapped: list[weakref.ref[Any]] = []  # weak: users reload loaders, dataset and all

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tapped": []}

    # set-up

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Tap the loaders as the strategy processes them: Lightning's samplers are in, no iterator yet."""
        if trainer.fast_dev_run or self._recorder.disabled or "process_dataloader" in vars(trainer.strategy):
            return
        lost = "sample ids fall back to the content hash"
        process = trainer.strategy.process_dataloader

        def process_and_tap(loader: Any) -> Any:
            processed = process(loader)
            with self._recorder.guard.catch("tapping a loader", lost=lost):
                if install_tap(processed) is not None:
                    self._tapped.append(weakref.ref(processed))
            return processed

        with self._recorder.guard.catch("tapping the loaders", lost=lost):
            trainer.strategy.process_dataloader = process_and_tap
            if trainer.strategy.root_device.type != "cpu":
                self._see_on_host(trainer.strategy)

    def _see_on_host(self, strategy: Any) -> None:
        """The content's hash is made of what the loader gave, so that the device is not asked for it."""
        move = strategy.batch_to_device

        def see_and_move(batch: Any, *args: Any, **kwargs: Any) -> Any:
            self._recorder.see_on_host(batch)
            return move(batch, *args, **kwargs)

        strategy.batch_to_device = see_and_move

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take away what was set on the user's objects; a fit with nothing left to train ends here."""
        self._recorder.finish()
        with self._recorder.guard.catch("removing the loader taps"):
            for name in ("process_dataloader", "batch_to_device"):
                vars(trainer.strategy).pop(name, None)
            while self._tapped:
                remove_tap(self._tapped.pop()())

    def _start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run:
            return
        names = self._recorder.resolve_names(pl_module) if trainer.is_global_zero else {}
        names = trainer.strategy.broadcast(names)  # our only collective; every rank is here
        self._recorder.start(
            pl_module, names, rank=trainer.global_rank, world_size=trainer.world_size, framework="lightning"
        )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """The process group exists, callback states are restored, no forward has run yet."""
        if self._trained and not self._loaded and trainer.current_epoch == 0 and trainer.global_step == 0:
            # Another training from scratch (a fold, a cell run again): no passes of the one before.
            self._recorder.renew(same_run=False)
            self._epoch = None
        self._start(trainer, pl_module)

    # training

    def _begin_train(self, trainer: Any) -> None:
        self._epoch, self._trained, self._loaded = trainer.current_epoch, True, False
        # After a resume the earlier attempt's rows up to the checkpoint count; Lightning does not always say
        # whether it resumes inside an epoch, and where it does not, there are no such rows.
        resume_step, self._resumed = (trainer.global_step if self._resumed else None), False
        if resume_step is not None:
            self._recorder.close_resumed("train", self._epoch - 1, mode="train", resume_step=resume_step)
        self._open.append("train")
        loader = _only(trainer.train_dataloader)
        self._recorder.begin_pass("train", self._epoch, mode="train", loader=loader, resume_step=resume_step)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """A walk over the training split begins."""
        self._begin_train(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Arm the capture. With no pass open this is the first event of a resume in mid-epoch."""
        if not self._open:
            self._begin_train(trainer)
        self._batch_step = trainer.global_step
        self._recorder.begin_batch(batch)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The loss names what it was computed from; of the first batches only."""
        self._recorder.see_loss(loss)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every micro-batch, accumulation or not."""
        self._recorder.record(batch, outputs, batch_idx=batch_idx, global_step=self._batch_step)
        if self._logs:
            self._hand_over(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Seal the pass; a validation inside the epoch is sealed by now."""
        if not self._open:  # resumed behind the last batch: what the earlier attempt recorded is to be sealed
            self._begin_train(trainer)
        self._end("train")
        if not trainer.sanity_checking:
            self._recorder.replay(
                _only(trainer.train_dataloader),
                self._epoch,
                context=trainer.precision_plugin.forward_context,
                global_step=trainer.global_step,
            )

    def _hand_over(self, trainer: Any, *, last: bool = False) -> None:
        """What was evaluated since goes to the trainer's loggers at the step it is at."""

        def log(figures: dict[str, float]) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(dict(figures), step=_logged_step(trainer))

        self._recorder.hand_over(log, last=last)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Wait for this rank's durability, then the account."""
        self._hand_over(trainer, last=True)
        self._recorder.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Keep what was recorded so far, readable and marked as partial."""
        while self._open:
            self._open.pop()
            self._recorder.abort_pass(f"{type(exception).__name__} in training")
        self._recorder.finish(status="exception")
        self._loaded = self._resumed = False
        self.teardown(trainer, pl_module, "exception")

    # evaluation

    def _begin_eval_batch(self, split: str, trainer: Any, loaders: Any, batch: Any, index: int) -> None:
        if trainer.sanity_checking:
            return
        name, loader = _pick(loaders, index)
        if not _one_by_one(trainer):
            loader = _only(loaders)
        wanted = split if index == 0 else f"{split}/{name}"
        if not self._open or self._open[-1] != wanted:
            self._end(split)  # the loader before, of the same walk
            self._open.append(wanted)
            self._recorder.begin_pass(wanted, self._epoch, mode="eval", loader=loader)
        self._recorder.begin_batch(batch)

    def _end(self, *splits: str) -> None:
        if self._open and self._open[-1].split("/")[0] in splits:
            self._open.pop()
            self._recorder.end_pass()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Inside fit the run has started; alone it starts here."""
        if trainer.state.fn != "fit":
            self._start(trainer, pl_module)

    on_test_start = on_predict_start = on_validation_start

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Arm the capture; a new loader is a new pass."""
        self._begin_eval_batch("val", trainer, trainer.val_dataloaders, batch, dataloader_idx)

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Likewise."""
        self._begin_eval_batch("test", trainer, trainer.test_dataloaders, batch, dataloader_idx)

    def on_predict_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Likewise."""
        self._begin_eval_batch("predict", trainer, trainer.predict_dataloaders, batch, dataloader_idx)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """One batch, as the module's own forward gave it."""
        if not trainer.sanity_checking:
            self._recorder.record(batch, outputs, batch_idx=batch_idx, global_step=trainer.global_step)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Seal the pass."""
        self._end("val", "test", "predict")
        if trainer.state.fn != "fit":  # a walk of its own; inside fit there is more to come
            self._recorder.finish()
            self._loaded = self._resumed = False  # its checkpoint says nothing about a later fit

    on_test_end = on_predict_end = on_validation_end

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The run's names and counters, builtin types only: loads with `weights_only=True`."""
        state = self._recorder.state()
        return {**state, "last_epoch": self._epoch} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed training, or a test from a checkpoint, finds its run again."""
        if self._recorder.enabled:  # the way back of a learning rate search inside a fit, not a resume
            return
        state = dict(state_dict)
        self._epoch = state.pop("last_epoch", None)
        self._resumed = True
        self._recorder.restore(state)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """A checkpoint made without this callback still tells the epoch."""
        self._loaded = not self._recorder.enabled
        if self._epoch is None:
            self._epoch = checkpoint.get("epoch")


class AutoMLDebuggerCallback(MLDebuggerCallback):
    """What `MLD_AUTO=1` adds to every `Trainer()`; it makes way for a callback of the user's own."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the trainer where the user has a callback; others still iterate over the list as it was."""
        if any(isinstance(c, MLDebuggerCallback) and c is not self for c in trainer.callbacks):
            trainer.callbacks = [c for c in trainer.callbacks if c is not self]
        else:
            super().setup(trainer, pl_module, stage)


def _logged_step(trainer: Any) -> int:
    """The step at which the trainer itself logs: `global_step` counts every optimizer of a batch."""
    loop = getattr(trainer.fit_loop, "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def _only(loaders: Any) -> Any:
    """The loader of `trainer.train_dataloader`, None where several make one batch: whose order is it then?"""
    several = isinstance(loaders, (dict, list, tuple)) and len(loaders) > 1
    return None if several else _pick(loaders)[1]


def _one_by_one(trainer: Any) -> bool:
    """Whether an evaluation walks its loaders one after the other; a CombinedLoader can zip them instead."""
    combined = getattr(getattr(trainer, "_active_loop", None), "_combined_loader", None)
    return getattr(combined, "_mode", "sequential") == "sequential"


def _pick(loaders: Any, index: int = 0) -> tuple[str, Any]:
    """Name and loader at a position of `trainer.*_dataloaders`: a loader, a list or a dict of them."""
    flat = getattr(loaders, "flattened", loaders)
    if isinstance(loaders, dict):
        return list(loaders.items())[index]
    if isinstance(flat, (list, tuple)):
        return str(index), flat[index] if index < len(flat) else None
    return str(index), flat
