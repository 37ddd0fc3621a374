"""Accelerate: `model, train_dl, val_dl = trace(accelerator, model, train=train_dl, val=val_dl)`.

Accelerate has no events: the loop is the user's. What can be seen is the iteration of the prepared
loaders and the model's forward, and that is what is recorded (`ml_debugger._loop`). The model's own hook
sees float32 under mixed precision (`prepare_model` converts what `forward` returns), so logits are
float32 and features of inner layers are what the layers made, bfloat16 say.

`Accelerator(log_with="ml_debugger")` writes what `accelerator.log` is given beside the records, with the
epoch.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_debugger._loop import LoopArguments, LoopRecorder, traced_loaders
from ml_debugger._prepared import watch_moves
from ml_debugger._runfile import RUN_FILE, read_run_file, write_run_file
from mld_core.records.format.layout import RunKey, Store
from mld_core.tracing.run.arguments import arguments_of

if TYPE_CHECKING:
    import pyarrow as pa

try:
    from accelerate import data_loader, tracking
    from accelerate.utils import broadcast_object_list
except ImportError as error:
    raise ImportError(
        "ml_debugger.accelerate needs Accelerate: pip install 'ml-debugger[accelerate]'"
    ) from error

__all__ = ["MLDebuggerTracker", "scalars", "trace"]

SCALARS_FILE = "scalars.jsonl"
_KEPT_SCALARS = 10_000
_WAITING_EPOCHS = 2  # where the user logs less often than an epoch ends, some are left out
_newest: weakref.ref[LoopRecorder] | None = None


@dataclass(frozen=True)
class _Prepared:
    accelerator: Any
    model: Any


@dataclass(frozen=True)
class TraceArguments(LoopArguments, _Prepared):
    """The arguments of `trace`."""

    model: Any = field()  # the prepared one, in its place in front


@arguments_of(TraceArguments)
def trace(given: TraceArguments) -> Any:  # noqa: D417 - the arguments are those of the call
    """Record what the prepared model says of the batches of the prepared loaders.

    Call it once, on every rank, after `accelerator.prepare` and before `accelerator.load_state`.

    Args:
        accelerator: the `Accelerator`.
        model: the prepared model; it is returned as it is.
        train: the prepared loader of the training split. Each walk over it is an epoch;
            `train.set_epoch(e)` says
            which, where they do not start at 0.
        val: that of the validation split, recorded under the epoch being trained or trained last.
        test: that of the test split, likewise.
        ...: those of every wrapper (docs/usage.md), by keyword.

    Returns:
        `model` and the loaders that were given, in the order train, val, test. The loaders are iterated
        as before; `accelerator.skip_first_batches` takes them too, wrap what it returns:
        `train.traced(skipped)`.

    Raises:
        ConfigurationProblem: an option of the wrong type or range.
        TypeError: an unknown option.
    """
    from mld_core.tracing.run.naming import unwrap_to_trace
    from mld_core.tracing.run.recorder import Recorder

    global _newest  # noqa: PLW0603 - the tracker is made by Accelerate and knows nothing of this call
    accelerator, model = given.accelerator, given.model
    recorder = Recorder(**given.less("accelerator", "model", "train", "val", "test"))
    watch_moves(recorder, accelerator.device, data_loader, "send_to_device")
    inner = unwrap_to_trace(model)
    names = recorder.resolve_names(inner) if accelerator.is_main_process else {}
    if accelerator.num_processes > 1:
        names = broadcast_object_list([names])[0]  # our only collective; every rank is here
    loop = LoopRecorder(
        recorder,
        inner,
        names,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        framework="accelerate",
        backward=accelerator,
        stepped=lambda: accelerator.sync_gradients,
        log=_Trackers(lambda: accelerator.trackers).log,
    )
    loop.start()
    checkpoints = _Checkpoints(accelerator, loop)
    if not recorder.disabled:
        accelerator.register_save_state_pre_hook(checkpoints.save)
        accelerator.register_load_state_pre_hook(checkpoints.load)
    _newest = weakref.ref(loop)
    return traced_loaders(given, loop)


class _Trackers:
    """Gives figures to the trackers, so that every row of the user's keeps its step.

    W&B has one count of steps, behind which it drops what comes; DVCLive and Comet count on from what they
    are given. There figures join the step that is open.

    Args:
        trackers: those there are by then.
    """

    def __init__(self, trackers: Callable[[], list[Any]]) -> None:
        self._trackers = trackers
        self._open: tuple[Any, float | None] = (None, None)  # W&B's step, and the epoch of its figures
        self._waiting: dict[float | None, dict[str, float]] = {}

    def log(self, figures: dict[str, float], steps: int) -> None:
        """Give figures of one epoch, at a number of optimizer steps."""
        for tracker in self._trackers():
            if tracker.name == "wandb":
                self._join(tracker, figures)
            elif tracker.name == "dvclive":  # its `log` would move on to the next step
                for name, value in figures.items():
                    tracker.tracker.log_metric(name, value)
            else:
                tracker.log(dict(figures), step=None if tracker.name == "comet_ml" else steps)

    def _join(self, tracker: Any, figures: dict[str, float]) -> None:
        """Add to the row W&B has open, which has one `mld/epoch`: another epoch waits for the next."""
        run = tracker.tracker
        if self._open == (None, None):
            run.define_metric("mld/*", step_metric="mld/epoch")
        epoch = figures.get("mld/epoch")
        self._waiting[epoch] = self._waiting.get(epoch, {}) | figures
        while len(self._waiting) > _WAITING_EPOCHS:
            del self._waiting[next(iter(self._waiting))]
        if self._open[0] != run.step:
            self._open = (run.step, next(iter(self._waiting)))
        found = self._waiting.pop(self._open[1], None)
        if found is not None:
            tracker.log(found, step=None, commit=False)


class _Checkpoints:
    """Beside `accelerator.save_state`'s files goes what a resumed training needs to find its run."""

    def __init__(self, accelerator: Any, loop: LoopRecorder) -> None:
        self._accelerator = accelerator
        self._loop = loop

    def save(self, models: Any, weights: Any, output_dir: str) -> None:
        loop = self._loop
        loop.commit()
        if not self._accelerator.is_main_process:
            return
        counters = {"epoch": loop.epoch, "steps": loop.steps, "inside": loop.training}
        write_run_file(loop.recorder, output_dir, {**loop.recorder.state(), **counters})

    def load(self, models: Any, input_dir: str) -> None:
        loop = self._loop
        with loop.recorder.guard.catch(f"reading {RUN_FILE}", lost="the training goes on as a new version"):
            state = read_run_file(input_dir)
            if not state:
                return
            epoch, inside = state.pop("epoch"), state.pop("inside")
            loop.steps = state.pop("steps")
            loop.resume_step = loop.steps if inside else None
            loop.epoch = epoch - 1 if inside else epoch
            loop.names = loop.recorder.rejoin(state, loop.names)
            loop.start()


class MLDebuggerTracker(tracking.GeneralTracker):  # type: ignore[misc]
    """What `accelerator.log` is given, beside the records of the run that `trace` began in this process.

    Where Accelerate cannot register trackers by name yet, give it `log_with=MLDebuggerTracker()`.
    Each call adds one line to `scalars.jsonl` in the run's folder, with the step and the epoch; `scalars`
    reads it.
    """

    name = "ml_debugger"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, run_name: str = "", **_: Any) -> None:
        super().__init__()
        self.run_name = run_name
        self._waiting: list[dict[str, Any]] = []
        self._thread = ThreadPoolExecutor(1, "mld-scalars")  # the training thread never waits for the disk

    @property
    def tracker(self) -> LoopRecorder | None:
        """The run the scalars belong to; None before `trace`."""
        loop = _newest() if _newest is not None else None
        return None if loop is None or loop.finished else loop

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the configuration given to `init_trackers`."""
        self._add({"config": {key: _plain(value) for key, value in values.items()}})

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Keep scalars."""
        self._add({"step": step, "values": {key: _plain(value) for key, value in values.items()}})

    def _add(self, line: dict[str, Any]) -> None:
        loop = self.tracker
        self._waiting.append({"time": time.time(), "n_epoch": None if loop is None else loop.epoch, **line})
        del self._waiting[:-_KEPT_SCALARS]
        if loop is not None and loop.names:
            run = RunKey(loop.names["model_name"], loop.names["version_name"])
            lines, self._waiting = self._waiting, []
            self._thread.submit(self._write, Store(loop.names["store"]).run_dir(run), lines, loop)

    def _write(self, folder: Path, lines: list[dict[str, Any]], loop: LoopRecorder) -> None:
        with loop.recorder.guard.catch("writing scalars", lost="these scalars"):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            _append(folder / SCALARS_FILE, text)

    def finish(self) -> None:
        """Wait for the lines; the records are finished too, since the training is."""
        self._thread.shutdown()
        loop = self.tracker
        if loop is not None:
            loop.finish()


def scalars(model_name: str, version_name: str, store: str | Path | None = None) -> pa.Table:
    """What `accelerator.log` was given during a run.

    Args:
        model_name: the model.
        version_name: the version.
        store: the records' folder; default `MLD_HOME`.

    Returns:
        One row per value: name str, value float64 (null where it is no number), step int64, n_epoch
        int64, time float64 (seconds since 1970, UTC).
    """
    import pyarrow as pa

    path = Store(store).run_dir(RunKey(model_name, version_name)) / SCALARS_FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [
        {**{k: line.get(k) for k in ("step", "n_epoch", "time")}, "name": name, "value": value}
        for line in lines
        for name, value in line.get("values", {}).items()
        if not isinstance(value, str)
    ]
    types = {
        "name": pa.string(),
        "value": pa.float64(),
        "step": pa.int64(),
        "n_epoch": pa.int64(),
        "time": pa.float64(),
    }
    return pa.Table.from_pylist(rows, pa.schema(list(types.items())))


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _plain(value: Any) -> float | str | None:
    """A number where it is one, else text."""
    if value is None or isinstance(value, str):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


if "ml_debugger" not in getattr(tracking, "LOGGER_TYPE_TO_CLASS", {}) and hasattr(
    tracking, "register_tracker_class"
):
    tracking.register_tracker_class(MLDebuggerTracker)
