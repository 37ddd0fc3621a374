"""MMEngine: a hook in `custom_hooks` records every prediction of every sample.

In a config, importing this module registers the hook:

    custom_imports = dict(imports=["ml_debugger.mmengine"], allow_failed_imports=False)
    custom_hooks = [dict(type="MLDebuggerHook", priority="LOW")]

(In a config that imports classes: `from ml_debugger.mmengine import MLDebuggerHook`, `type=MLDebuggerHook`.)

The hook only translates events; what is recorded, and how, is in `mld_core.tracing.run.recorder`. What it
relies on (tests/integrations/golden has the order of events in full):

* `before_train`, `before_val_epoch` and `before_test_epoch` come on every rank, after a checkpoint was loaded
  and `train_step` compiled, before any forward: the run starts there;
* `runner.epoch` is one past the epoch trained when its validation runs, and stays 0 in an IterBasedTrainLoop,
  whose validations lie inside its only epoch: the epoch is counted here, and passes nest;
* outside a training, `runner.iter` and `runner.epoch` build the train loop: they are read only inside one;
* a resumed EpochBasedTrainLoop walks a cut epoch again from its first batch, an IterBasedTrainLoop goes on;
* nothing is called after an exception, and hooks have no state: the run's names are kept in `mld_run.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_debugger import _service  # noqa: F401 - wires the upload
from ml_debugger._runfile import read_run_file, write_run_file
from mld_core.tracing.batch.taps import remove_tap
from mld_core.tracing.capture.compiling import is_compiled
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.run.options import WrapperOptions

try:
    from mmengine.dist import broadcast_object_list
    from mmengine.hooks import Hook
    from mmengine.model import is_model_wrapper
    from mmengine.registry import HOOKS
    from mmengine.runner import IterBasedTrainLoop
except ImportError as error:
    raise ImportError("ml_debugger.mmengine needs MMEngine: pip install 'ml-debugger[mmengine]'") from error

__all__ = ["MLDebuggerHook"]


@HOOKS.register_module(force=True)  # a notebook may reload this module
class MLDebuggerHook(Hook):  # type: ignore[misc]
    """Records train, val and test passes of an MMEngine `Runner`; no argument is required.

    The arguments are those of every wrapper (docs/usage.md). Errors of ours never reach the runner.
    `global_step` counts iterations, as MMEngine does: with gradient accumulation every micro-batch is one.
    """

    priority = "LOW"  # behind EMAHook's weight swap, before CheckpointHook

    @arguments_of(WrapperOptions)
    def __init__(self, options: WrapperOptions) -> None:
        from mld_core.tracing.run.recorder import Recorder

        self._recorder = Recorder(**vars(options))
        self._logs = options.log_to_trainer
        self._epoch: int | None = None  # the epoch trained last, by our own count
        self._started = False
        self._training = False  # inside Runner.train
        self._done: int | None = None  # iterations trained so far
        self._resumed_at: int | None = None  # iterations done at the checkpoint that was loaded
        self._cut = False  # the checkpoint was saved inside the epoch that is trained next
        self._states: dict[str, dict[str, Any]] = {}  # iterations done -> the recorder's state then

    # set-up

    def before_run(self, runner: Any) -> None:
        """`train`, `val` or `test` was called; the call before it may have ended in an exception."""
        if self._started:
            self._recorder.finish(status="exception")
        self._started = self._training = False

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """What is evaluated without training is of the epoch at which the checkpoint was saved."""
        with self._recorder.guard.catch(
            "reading the checkpoint's epoch", lost="the epoch number of what follows"
        ):
            meta = checkpoint.get("meta") or {}
            info = (checkpoint.get("message_hub") or {}).get("runtime_info") or {}
            self._done = self._resumed_at = meta.get("iter")
            if "epoch" in info:  # the epoch in which it was saved; meta has the one to begin with
                self._epoch = int(info["epoch"])
            elif "epoch" in meta:
                self._epoch = max(int(meta["epoch"]) - 1, 0)

    def _start(self, runner: Any) -> None:
        if self._started:
            return
        self._started = True
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        settled = [self._settle(runner, model) if runner.rank == 0 else None]
        broadcast_object_list(settled)  # our only collective; every rank is here
        names, state = settled[0] or ({}, {})
        if runner.rank != 0:
            self._recorder.restore(state)
        self._recorder.start(
            model, names, rank=runner.rank, world_size=runner.world_size, framework="mmengine"
        )

    def _settle(self, runner: Any, model: Any) -> tuple[dict[str, str], dict[str, Any]]:
        """The run's names, and the state they were restored from; on rank 0."""
        state: dict[str, Any] = {}
        with self._recorder.guard.catch("reading mld_run.json", lost="the run goes on under a new version"):
            if self._resumed_at is not None:
                state = self._find_state(runner, self._resumed_at)
        self._recorder.restore(state)
        return self._recorder.resolve_names(model), state

    def _find_state(self, runner: Any, done: int) -> dict[str, Any]:
        """The state kept last before iteration `done`, beside the checkpoint or in the work_dir."""
        if self._recorder.state(durable=False):  # trained in this process: nothing to find
            return {}
        loaded = getattr(runner, "_load_from", None)
        folders = [Path(runner.work_dir), *([Path(loaded).parent] if loaded else [])]
        states = next((kept["states"] for kept in map(read_run_file, folders) if kept), {})
        self._states = {key: value for key, value in states.items() if int(key) <= done}
        return dict(self._states[max(self._states, key=int)]) if self._states else {}

    def after_run(self, runner: Any) -> None:
        """Wait for this rank's durability, then the account; take away what was set on the loaders."""
        if self._started:
            self._hand_over(runner, last=True)
            self._recorder.finish()
        self._started = self._training = False
        with self._recorder.guard.catch("removing the loader taps"):
            for name in ("_train_loop", "_val_loop", "_test_loop"):
                remove_tap(getattr(getattr(runner, name, None), "dataloader", None))

    # training

    def before_train(self, runner: Any) -> None:
        """The checkpoint is loaded, `train_step` compiled, no forward has run yet."""
        with self._recorder.guard.catch("starting to record", lost="all records of this run"):
            if runner.iter == 0:  # a checkpoint's weights to begin with: not its run
                self._resumed_at = None
            self._cut = self._resumed_at is not None and self._epoch == runner.epoch
            self._training, self._done, self._epoch = True, runner.iter, runner.epoch - 1
            self._start(runner)

    def before_train_epoch(self, runner: Any) -> None:
        """A walk over the training split begins; in an IterBasedTrainLoop its iterator is made already."""
        with self._recorder.guard.catch("beginning a train epoch", lost="the records of that epoch"):
            by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
            self._epoch = runner.epoch
            self._recorder.begin_pass(
                "train",
                self._epoch,
                mode="train",
                loader=None if by_iter else getattr(runner.train_loop, "dataloader", None),
                resume_step=(runner.iter if by_iter else 0) if self._cut else None,
            )
            self._cut = False

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Arm the capture; the loss of the first batches is seen as the optimizer's wrapper is given it."""
        self._recorder.begin_batch(data_batch)
        # `update_params` is a part of what is compiled; whether it is takes some asking.
        if self._recorder.wants_loss and not is_compiled(runner.model):
            self._recorder.watch_loss(getattr(runner, "optim_wrapper", None), "update_params")

    before_val_iter = before_train_iter

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Arm the capture."""
        self._recorder.begin_batch(_first_view(data_batch))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Every micro-batch. `outputs` are parsed losses: predictions come from the hooks on the model."""
        self._recorder.record(data_batch, None, batch_idx=batch_idx, global_step=self._done)
        self._done = runner.iter + 1
        if self._logs:
            self._hand_over(runner)

    def _hand_over(self, runner: Any, *, last: bool = False) -> None:
        """What was evaluated since goes to the visualizer at the iteration the runner is at."""
        self._recorder.hand_over(
            lambda figures: runner.visualizer.add_scalars(dict(figures), step=runner.iter), last=last
        )

    def after_train_epoch(self, runner: Any) -> None:
        """Seal the pass. An EpochBasedTrainLoop validates after this, an IterBasedTrainLoop before."""
        self._recorder.end_pass()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._recorder.replay(
            getattr(runner.train_loop, "dataloader", None),
            self._epoch,
            forward=lambda batch: model.test_step(batch),  # noqa: PLW0108 - looked up only if it is called
            global_step=self._done,
        )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Beside the checkpoint goes what a resumed training needs to find its run; on rank 0 only."""
        self._keep_state(runner, (checkpoint.get("meta") or {}).get("iter", self._done), durable=True)

    def _keep_state(self, runner: Any, done: int | None, *, durable: bool) -> None:
        if self._training and self._recorder.enabled and runner.rank == 0:
            self._states[str(done)] = dict(self._recorder.state(durable=durable))
            write_run_file(self._recorder, runner.work_dir, {"states": self._states})

    # evaluation

    def _begin_evaluation(self, split: str, runner: Any) -> None:
        with self._recorder.guard.catch(f"beginning a {split} pass", lost="the records of that pass"):
            self._start(runner)
            loop = getattr(runner, f"{split}_loop")
            loader, limits = getattr(loop, "dataloader", None), _limit_range(loop)
            self._recorder.begin_pass(split, self._epoch, mode="eval", loader=loader, limit_range=limits)

    def before_val_epoch(self, runner: Any) -> None:
        """A walk over the validation split begins; alone, the run starts here."""
        self._begin_evaluation("val", runner)

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """One batch, with what the model's `val_step` or `test_step` returned."""
        self._recorder.record(data_batch, outputs, batch_idx=batch_idx, global_step=self._done)

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """One batch, perhaps of several views."""
        self.after_val_iter(runner, batch_idx, _first_view(data_batch), outputs)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Seal the pass."""
        self._recorder.end_pass()
        self._keep_state(runner, self._done, durable=False)  # a resume must not count this pass again

    def before_test_epoch(self, runner: Any) -> None:
        """A walk over the test split begins; the run starts here, unless it is inside a training."""
        self._begin_evaluation("test", runner)

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Seal the pass."""
        self._recorder.end_pass()


def _first_view(batch: Any) -> Any:
    """The first of a batch's views, where a classifier is tested with augmentation (`BaseTTAModel`).

    Labels and ids are the same in all of them; the answer is the mean that the model returns.
    """
    views = batch.get("data_samples") if isinstance(batch, dict) else None
    if not isinstance(views, (list, tuple)) or not views or not isinstance(views[0], (list, tuple)):
        return batch
    if not views[0] or not all(hasattr(sample, "gt_label") for sample in views[0]):
        return batch
    return {name: part[0] if isinstance(part, (list, tuple)) else part for name, part in batch.items()}


def _limit_range(loop: Any) -> Any:
    """What MMDetection3D's KittiMetric drops boxes beyond, None where no metric does."""
    metrics = getattr(getattr(loop, "evaluator", None), "metrics", None) or []
    return next(
        (found for one in metrics if (found := getattr(one, "pcd_limit_range", None)) is not None), None
    )
