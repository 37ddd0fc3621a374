"""Hugging Face: `Trainer(callbacks=[MLDebuggerCallback()])` records every prediction of every sample.

The callback only translates events; what is recorded, and how, is in `mld_core.tracing.run.recorder`. A
callback of `transformers.Trainer` is never given a batch or an output, so hooks on the model keep
references and events decide what becomes of them. The order it relies on (tests/integrations/golden has
it in full):

* one forward, then `on_substep_end` or `on_pre_optimizer_step` (training) or `on_prediction_step`
  (evaluation); any other forward is claimed by no event and recorded by nobody;
* an evaluation has no beginning: its first forward is one. Its split is known when it ends, from the
  prefix of the metrics (`on_evaluate`) or from `on_predict`;
* `on_epoch_end` comes before the epoch's evaluation; `state.epoch` is a fraction: epochs are counted here;
* after an out-of-memory error under `auto_find_batch_size`, `on_train_begin` fires again;
* the trainer itself is found on the stack of its events: its next `_prepare_inputs` shows the batch before
  `compute_loss` takes the labels out of it, `accelerator.backward` the loss of the first batches; each gets
  its own method back with that call;
* an instance with `ExportableState` is replaced on resume, so the run's names are kept in `mld_run.json`.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Mapping
from copy import copy
from typing import Any

import torch

from ml_debugger import _service  # noqa: F401 - wires the upload
from ml_debugger._prepared import Copies, Prepared, count_draws, is_compiled, length_of, referred, watch_moves
from ml_debugger._runfile import RUN_FILE, read_run_file, state_at, write_run_file
from mld_core.tracing.capture.compiling import say_compiled
from mld_core.tracing.capture.forward import LatestForward, local_on_stack, owner_on_stack
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.run.leaving import Leaving
from mld_core.tracing.run.options import WrapperOptions

try:
    from accelerate import data_loader, utils
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(
        "ml_debugger.huggingface needs transformers and accelerate: pip install 'ml-debugger[huggingface]'"
    ) from error

__all__ = ["MLDebuggerCallback"]

_EXIT_S = 15.0
_LOOPS = ("evaluation_loop", "prediction_loop")  # they have the batch in hand as `inputs`


class MLDebuggerCallback(TrainerCallback):  # type: ignore[misc]
    """Records train, evaluate and predict passes of a `transformers.Trainer`; no argument is required.

    The arguments are those of every wrapper (docs/usage.md). Errors of ours never reach the trainer.
    Splits are `train`, `val` (`val/<name>` of a dict of evaluation datasets), `predict`, and `test` of
    `evaluate(metric_key_prefix="test")`.
    """

    @arguments_of(WrapperOptions)
    def __init__(self, options: WrapperOptions) -> None:
        from mld_core.tracing.run.recorder import Recorder

        self._recorder = Recorder(**vars(options))
        self._logs = options.log_to_trainer
        self._leaving = Leaving(self._recorder.left)
        self._names: dict[str, str] = {}
        self._forward = LatestForward(self._forward_begins, Copies(self._recorder))
        self._trainer: weakref.ref[Any] | None = None
        self._loader: Any = None  # gives that of the evaluation under way, if known
        self._args: Any = None
        self._compiled = False  # by Accelerate, as the arguments or its launcher say
        self._epoch: int | None = None  # the epoch being trained or trained last
        self._training = False  # between on_train_begin and on_train_end
        self._in_step = False  # between on_step_begin and on_pre_optimizer_step
        self._evaluating = False  # an evaluation pass is open
        self._replaying = False  # the walk over the training data after an epoch
        self._step = self._batch = self._outer_batch = 0
        self._saved: dict[str, dict[str, Any]] = {}  # optimizer steps at a checkpoint -> the state then
        atexit.register(_at_exit, weakref.ref(self))

    # set-up

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """The model is there, unless `model_init` makes it later."""
        with self._recorder.guard.catch("setting up", lost="all records of this run"):
            self._meet_trainer()
            self._attach(args, model)
            if self._compiled and model is not None:
                self._start(model)  # hooks set after the first compiled call never fire
                self._expect_evaluation()

    def _attach(self, args: Any, model: Any) -> None:
        self._args, self._compiled = args, is_compiled(args)
        watch_moves(self._recorder, args.device, data_loader, "send_to_device")
        if isinstance(model, torch.nn.Module) and not self._recorder.disabled:
            if self._compiled:
                say_compiled(model)
            self._forward.attach(model)
            self._recorder.attach(model)

    def _meet_trainer(self) -> None:
        if not self._recorder.disabled and (trainer := owner_on_stack(Trainer)) is not None:
            self._trainer = weakref.ref(trainer)
            count_draws(getattr(trainer, "accelerator", None))

    def _see_next(self) -> None:
        """The trainer's next batch is seen as it prepares it; a method that the user set on it stays."""
        trainer = None if self._trainer is None else self._trainer()
        if trainer is not None and "_prepare_inputs" not in vars(trainer):
            trainer._prepare_inputs = Prepared(trainer, self._forward)  # noqa: SLF001

    def _see_no_more(self) -> None:
        trainer = None if self._trainer is None else self._trainer()
        if trainer is not None and isinstance(vars(trainer).get("_prepare_inputs"), Prepared):
            del trainer._prepare_inputs  # noqa: SLF001

    def _start(self, model: Any, resume_step: int = 0) -> None:
        """Where a first walk may begin, on every rank: names, one broadcast, hooks."""
        if self._recorder.enabled:
            return
        if not self._names:
            settled: dict[str, Any] = {}
            if self._args.process_index == 0:
                settled["saved"] = self._read_saved() if resume_step else {}
                self._recorder.restore(state_at(settled["saved"], resume_step))
                settled["names"] = self._recorder.resolve_names(model)
            if self._args.world_size > 1:
                settled = utils.broadcast_object_list([settled])[0]  # our only collective; every rank is here
            self._names, self._saved = settled["names"], settled["saved"]
            self._recorder.restore(state_at(self._saved, resume_step))
        self._recorder.start(
            model,
            self._names,
            rank=self._args.process_index,
            world_size=self._args.world_size,
            framework="huggingface",
            id_hint="with Hugging Face: TrainingArguments(remove_unused_columns=False) and a data_collator "
            "that keeps input_id, which is taken out of the batch before forward()",
        )

    # training

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """A training begins, goes on from a checkpoint, or is tried again with a smaller batch."""
        with self._recorder.guard.catch("beginning a training", lost="the records of this training"):
            self._drop_evaluation()
            self._meet_trainer()
            failed = self._training and args.auto_find_batch_size
            if failed or self._epoch is not None:
                self._names = self._recorder.renew(same_run=failed or state.global_step > 0)
                if state.global_step > 0:
                    self._recorder.restore(state_at(self._saved, state.global_step))
            self._training, self._in_step = True, False
            if not self._recorder.disabled:
                self._leaving.begin(Trainer)
            self._epoch = int(state.epoch or 0) - 1
            self._attach(args, model)
            self._start(model, state.global_step)
            self._save(state)  # a kill between a checkpoint and its `on_save` must not cost the run its name
            self._expect_evaluation()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A walk over the training split begins; the loader's iterator is not made yet."""
        self._drop_evaluation()
        self._epoch = (-1 if self._epoch is None else self._epoch) + 1
        self._batch = 0
        epoch = float(state.epoch or 0)
        self._recorder.begin_pass(
            "train",
            self._epoch,
            mode="train",
            loader=kwargs.get("train_dataloader"),
            resume_step=state.global_step if self._epoch < epoch < self._epoch + 1 else None,
            max_ahead=args.gradient_accumulation_steps + 1,
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The first micro-batch of an optimizer step is about to go through the model."""
        self._drop_evaluation()
        self._forward.take()  # of a step that failed
        self._in_step, self._step = True, state.global_step
        self._begin_micro_batch()
        if self._logs:
            self._hand_over(args, state, control)

    def _hand_over(self, args: Any, state: Any, control: Any) -> None:
        """What was evaluated since goes to the callbacks that log; the trainer's history stays as it is."""
        trainer = None if self._trainer is None else self._trainer()
        if trainer is None:
            return
        handler = trainer.callback_handler
        # A copy: who logs answers by taking back that something is to be logged.
        self._recorder.hand_over(lambda figures: handler.on_log(args, state, copy(control), figures))

    def _begin_micro_batch(self) -> None:
        if self._compiled:  # any other forward says itself that it begins
            self._recorder.begin_batch()
        self._see_next()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A micro-batch of several is through."""
        self._end_batch()
        self._begin_micro_batch()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last micro-batch of an optimizer step is through."""
        self._end_batch()
        self._in_step = False

    def _end_batch(self) -> None:
        if self._evaluating:  # a forward that nobody claimed came after the step's own
            self._drop_evaluation()
        else:
            self._commit()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation may follow."""
        self._step = state.global_step
        self._expect_evaluation()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the pass; the epoch's evaluation comes after this event."""
        self._drop_evaluation()
        self._recorder.end_pass()
        self._replay(kwargs.get("train_dataloader"), kwargs.get("model"))
        self._hand_over(args, state, control)
        self._expect_evaluation()

    def _replay(self, loader: Any, model: Any) -> None:
        """With `replay_train`: the training data once more; its forwards are no evaluation."""
        from mld_core.tracing.run.replay import moved

        if not isinstance(model, torch.nn.Module):
            return
        self._replaying = True
        try:
            self._recorder.replay(
                loader,
                self._epoch,
                forward=lambda batch: model(**moved(batch, next(model.parameters()).device)),
                global_step=self._step,
            )
        finally:
            self._replaying = False
            self._forward.take()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for this rank's durability, then the account. What follows has the best model, if loaded."""
        self._drop_evaluation()
        self._leaving.end()
        self._training = False
        if args.load_best_model_at_end and state.best_model_checkpoint:
            best = str(state.best_model_checkpoint).rsplit("-", 1)[-1]
            self._epoch = self._saved.get(best, {}).get("last_epoch", self._epoch)
        self._pause()

    def _pause(self) -> None:
        """Nothing is under way: the rows are made durable, and the account is given."""
        self._see_no_more()
        if self._compiled:  # the hooks must stay: new ones would never fire
            self._recorder.wait_for_save(self._epoch)
        else:
            self._recorder.finish()

    # evaluation

    def _forward_begins(self, module: torch.nn.Module) -> None:
        """Called by the hook before each forward that is not being compiled."""
        if self._replaying:
            return
        with self._recorder.guard.catch("arming the hooks", lost="the records of that batch"):
            if module.training:
                if self._in_step:
                    self._drop_evaluation()
                    if not self._recorder.heard:
                        self._recorder.begin_batch()
                    trainer = None if self._trainer is None else self._trainer()
                    self._recorder.watch_loss(getattr(trainer, "accelerator", None))
                return
            if self._in_step and not self._evaluating:
                self._commit()  # before this forward takes the place of the step's own
            if self._evaluating and self._is_another():
                self._drop_evaluation()
            if not self._evaluating:
                self._start(module)
                self._begin_evaluation()
            if self._batch == 0 or not self._forward.is_prepared:  # a `prediction_step` of its own
                self._forward.meet(local_on_stack("inputs", _LOOPS))
            if not self._forward.pending:
                self._recorder.begin_batch()

    def _evaluated(self) -> Any:
        """The loader of the trainer's latest evaluation; this object where none is known."""
        trainer = None if self._trainer is None else self._trainer()
        loader = None if trainer is None else trainer.callback_handler.eval_dataloader
        return self if loader is None else loader

    def _is_another(self) -> bool:
        """Whether the evaluation under way was left by an exception: this forward belongs to the next one."""
        if self._evaluated() is not self._loader():
            return True
        kept = self._batch and self._args.dataloader_persistent_workers  # its loader is used again
        return bool(kept) and local_on_stack("step", _LOOPS) != self._batch

    def _begin_evaluation(self) -> None:
        self._evaluating, self._outer_batch, self._batch = True, self._batch, 0
        self._meet_trainer()
        self._loader = referred(self._evaluated())
        self._recorder.begin_pass("val", self._epoch, mode="eval", provisional=True)

    def _expect_evaluation(self) -> None:
        """A compiled forward cannot tell that it begins: its pass is opened wherever one may come."""
        if self._compiled and not self._evaluating:
            self._begin_evaluation()
            self._recorder.begin_batch()
            self._see_next()

    def _drop_evaluation(self) -> None:
        """Forward passes that no event claimed (a callback that generates, say) leave nothing."""
        if self._evaluating:
            self._evaluating, self._batch = False, self._outer_batch
            self._see_no_more()
            self._recorder.drop_pass()
            self._forward.take()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A batch of an evaluation is through; only now its loader is known."""
        if self._evaluating:
            self._in_step = False  # a training that was interrupted inside a step
            if self._batch == 0 and not local_on_stack("step", _LOOPS):  # else its places are not known
                self._recorder.use_loader(kwargs.get("eval_dataloader"))
            self._commit()
            if self._compiled:
                self._recorder.begin_batch()
            if self._batch < length_of(kwargs.get("eval_dataloader")):
                self._see_next()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """Seal the pass under the split that the metrics' prefix tells."""
        self._end_evaluation(_split_of(metrics or {}))

    def on_predict(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal the pass of `Trainer.predict`."""
        self._end_evaluation("predict")

    def _end_evaluation(self, split: str) -> None:
        if not self._evaluating:  # a rank without a batch: it seals an empty pass, or nobody could read it
            self._begin_evaluation()
        self._evaluating, self._batch = False, self._outer_batch
        self._see_no_more()
        self._recorder.end_pass(split)
        if not self._training:
            self._pause()
        self._expect_evaluation()

    def _commit(self) -> None:
        given = self._forward.given
        batch, outputs = self._forward.take(evaluating=self._evaluating)
        if batch is not None:
            self._recorder.record(batch, outputs, batch_idx=self._batch, global_step=self._step)
        elif given and (self._evaluating or outputs is not None):  # the model was not asked, or it is refused
            self._recorder.skip_batch(given)
        else:
            return
        self._batch += 1

    # checkpoints

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Beside the checkpoints goes what a resumed training needs to find its run."""
        self._save(state)

    def _save(self, state: Any) -> None:
        if not self._recorder.enabled or str(self._args.save_strategy).endswith("no"):
            return
        self._saved[str(state.global_step)] = {**self._recorder.state(), "last_epoch": self._epoch}
        if state.is_world_process_zero:
            write_run_file(self._recorder, self._args.output_dir, self._saved)

    def _read_saved(self) -> dict[str, Any]:
        # Nothing may raise on this rank alone: the others wait in the broadcast.
        with self._recorder.guard.catch(f"reading {RUN_FILE}", lost="the training goes on as a new version"):
            kept = read_run_file(self._args.output_dir)
            return {str(int(step)): dict(state) for step, state in kept.items()}
        return {}

    def finish(self) -> None:
        """At the end of the program: what an exception left open is flushed, and stays partial."""
        self._drop_evaluation()
        self._see_no_more()
        self._recorder.finish("exception" if self._training else "finished", timeout=_EXIT_S)


class AutoMLDebuggerCallback(MLDebuggerCallback):
    """What `mld run` adds to every trainer; it makes way for a callback of the user's own."""

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Those of the user's are there already, unless they are added later."""
        if not self._makes_way():
            super().on_init_end(args, state, control, model, **_)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Likewise."""
        if not self._makes_way():
            super().on_train_begin(args, state, control, model, **_)

    def _start(self, model: Any, resume_step: int = 0) -> None:
        if not self._makes_way():
            super()._start(model, resume_step)

    def _makes_way(self) -> bool:
        """Leaves the trainer where the user has a callback; others still iterate over the list as it was."""
        handler = getattr(owner_on_stack(Trainer), "callback_handler", None)
        there = [] if handler is None else handler.callbacks
        if not any(isinstance(c, MLDebuggerCallback) and c is not self for c in there):
            return False
        handler.callbacks = [c for c in there if c is not self]
        self._forward.detach()
        self._recorder.detach()
        self._see_no_more()
        return True


def _at_exit(reference: weakref.ref[MLDebuggerCallback]) -> None:
    callback = reference()
    if callback is not None:
        callback.finish()


def _split_of(metrics: Mapping[str, Any]) -> str:
    """The split behind the prefix of evaluation metrics.

    >>> _split_of({"eval_loss": 0.1, "eval_runtime": 1.0}), _split_of({"eval_a_runtime": 1.0})
    ('val', 'val/a')
    >>> _split_of({"test_runtime": 1.0})
    'test'
    """
    prefixes = [key[: -len("_runtime")] for key in metrics if key.endswith("_runtime")]
    prefix = min(prefixes, key=len, default="eval")
    if prefix == "eval":
        return "val"
    return "val/" + prefix[len("eval_") :] if prefix.startswith("eval_") else prefix
