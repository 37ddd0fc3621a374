"""`log_to_trainer`: figures made beside a training in the loggers of the trainer, with the epoch they are of."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from live_parts import RUN, Digits, rows_of, train_digits, wait_until
from torch.utils.data import DataLoader

from mld_core.records.format.layout import RunKey
from mld_core.tracing.run.beside import live


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, and figures looked for at every event."""
    monkeypatch.delenv("MLD_LIVE", raising=False)
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    monkeypatch.setattr(live, "_ASK_SECONDS", 0.0)
    return tmp_path / "store"


def wait_for_epoch_0(store: Path, model: str) -> None:
    """Until the first epoch's passes have their metrics."""
    run = RunKey(model, "v1")
    wait_until(
        lambda: {row["dataset"] for row in rows_of(store, run) if row["n_epoch"] == 0} >= {"train", "val"}
    )


def of_epoch_0(logged: list[dict[str, Any]]) -> dict[str, Any]:
    """What was logged with `mld/epoch` 0."""
    merged: dict[str, Any] = {}
    for one in logged:
        if str(one.get("mld/epoch", "")) in {"0", "0.0"}:
            merged |= {name: value for name, value in one.items() if name.startswith("mld/") and value != ""}
    return merged


def logged_by_lightning(store: Path, folder: Path, kind: type = Digits) -> list[dict[str, Any]]:
    """Rows of Lightning's CSV logger of a training of two epochs, the second of which waits for the first."""
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    class Waits(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                wait_for_epoch_0(store, RUN.model_name)

    logger = CSVLogger(folder, flush_logs_every_n_steps=1)
    train_digits(folder, 2, Waits(), log_to_trainer=True, logger=logger, kind=kind)
    return list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))


def test_lightnings_loggers(store: Path, tmp_path: Path) -> None:
    rows = logged_by_lightning(store, tmp_path)
    known = {(row["dataset"], row["n_epoch"]): row for row in rows_of(store)}
    found = of_epoch_0(rows)
    for split in ("train", "val"):
        assert float(found[f"mld/{split}/accuracy"]) == known[split, 0]["metrics"]["accuracy"]
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    assert steps[0] >= 10, "the step the trainer was at, not the epoch"


class TwoOptimizers(Digits):
    """Steps twice in a batch, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("mine", loss)

    def configure_optimizers(self) -> Any:
        first, second = self.net[0], self.net[2]
        return [torch.optim.SGD(layer.parameters(), 1e-3) for layer in (first, second)]


def test_lightnings_own_count_of_steps_is_kept_with_two_optimizers(store: Path, tmp_path: Path) -> None:
    rows = logged_by_lightning(store, tmp_path, TwoOptimizers)
    ours = [int(row["step"]) for row in rows if row.get("mld/epoch")]
    assert ours
    assert max(ours) <= 20, "batches, not optimizer steps"


def test_nothing_is_logged_unless_asked_for(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    train_digits(tmp_path, 2, logger=logger)
    assert not (Path(logger.log_dir) / "metrics.csv").exists()


def test_hugging_faces_callbacks_and_its_history_stays_as_it_is(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import hf_parts
    from transformers import TrainerCallback

    from ml_debugger.huggingface import MLDebuggerCallback

    class Logger(TrainerCallback):
        """A logger, as those of Hugging Face are."""

        def __init__(self) -> None:
            self.logged: list[dict[str, Any]] = []
            self.steps: list[int] = []

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.epoch >= 1:
                wait_for_epoch_0(store, "Net")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self.logged.append(dict(logs))
            self.steps.append(state.global_step)

    def history(*callbacks: Any, folder: Path) -> list[Any]:
        options = {"num_train_epochs": 2, "eval_strategy": "epoch", "logging_strategy": "steps"}
        options |= {"logging_steps": 1, "save_strategy": "epoch"}
        trainer = hf_parts.trainer(folder, *callbacks, train=20, val=10, **options)
        trainer.train()
        trainer.save_state()
        told = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        return [
            {name: value for name, value in one.items() if "runtime" not in name and "per_" not in name}
            for one in told
        ]

    logger = Logger()
    with_ours = history(logger, MLDebuggerCallback(log_to_trainer=True), folder=tmp_path / "a")
    found = of_epoch_0(logger.logged)
    assert {"mld/train/accuracy", "mld/val/accuracy"} <= found.keys()
    assert logger.steps == sorted(logger.steps)
    silent = Logger()
    silent.on_epoch_begin = lambda *_, **__: None  # type: ignore[method-assign]
    assert with_ours == history(silent, folder=tmp_path / "b")


def train_accelerate(store: Path, log_with: Any, epochs: int, after: Any = None) -> None:
    """A training of 5 steps an epoch under Accelerate; `after(accelerator, epoch)` ends each epoch."""
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from loop_parts import Indexed, Net

    from ml_debugger.accelerate import trace

    accelerator = accelerate.Accelerator(cpu=True, log_with=[log_with])
    accelerator.init_trackers("project")
    net = Net()
    made = accelerator.prepare(
        net, torch.optim.SGD(net.parameters(), 1e-3), DataLoader(Indexed(20), 4), DataLoader(Indexed(8), 4)
    )
    model, optimizer, train, val = made
    model, train, val = trace(accelerator, model, train=train, val=val, log_to_trainer=True)
    for epoch in range(epochs):
        for batch in train:
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
        for batch in val:
            model(**batch)
        if epoch == 0:
            wait_for_epoch_0(store, "Net")
        if after is not None:
            after(accelerator, epoch)
    accelerator.end_training()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_accelerates_trackers(store: Path) -> None:
    tracking = pytest.importorskip("accelerate.tracking")

    class Tracker(tracking.GeneralTracker):
        """A tracker of the user's own."""

        name, requires_logging_directory, tracker = "own", False, None

        def __init__(self) -> None:
            super().__init__()
            self.logged: list[dict[str, Any]] = []
            self.steps: list[int] = []

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            """Nothing."""

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            self.logged.append(values)
            self.steps.append(step)

    tracker = Tracker()
    train_accelerate(store, tracker, 2)
    found = of_epoch_0(tracker.logged)
    assert {"mld/train/accuracy", "mld/val/accuracy"} <= found.keys()
    assert tracker.steps == sorted(tracker.steps)
    assert tracker.steps[0] == 5


def test_wandb_keeps_every_row_of_the_user(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    steps: list[int] = []
    seen: list[dict[str, Any]] = []

    def after(accelerator: Any, epoch: int) -> None:
        run = accelerator.get_tracker("wandb", unwrap=True)
        seen.append(dict(run.summary))
        accelerator.log({"mine": float(epoch)}, step=epoch)  # dropped by W&B where its count is beyond
        steps.append(run.step)

    train_accelerate(store, "wandb", 3, after)
    assert steps == [0, 1, 2]
    assert {"mld/train/accuracy", "mld/val/accuracy", "mld/epoch"} <= seen[-1].keys()


def test_a_row_of_wandb_holds_figures_of_one_epoch() -> None:
    pytest.importorskip("accelerate")
    from ml_debugger.accelerate import _Trackers

    class Run:
        """The count of steps of a W&B run."""

        step = 0

        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("mld/*", "mld/epoch")

    class Tracker:
        """Stands in for the W&B tracker: what is given for which row."""

        name, tracker = "wandb", Run()

        def __init__(self) -> None:
            self.rows: dict[int, list[dict[str, float]]] = {}

        def log(self, values: dict[str, float], step: int | None, *, commit: bool) -> None:
            assert step is None
            assert not commit
            self.rows.setdefault(self.tracker.step, []).append(values)

    tracker = Tracker()
    log = _Trackers(lambda: [tracker]).log
    for epoch, split in ((0, "train"), (0, "val"), (1, "train")):
        log({"mld/epoch": float(epoch), f"mld/{split}/accuracy": 0.5}, 7)
    tracker.tracker.step = 1  # the user's row is written
    log({"mld/epoch": 1.0, "mld/val/accuracy": 0.75}, 9)
    epochs = {step: {one["mld/epoch"] for one in given} for step, given in tracker.rows.items()}
    assert epochs == {0: {0.0}, 1: {1.0}}
    assert tracker.rows[1][-1] == {"mld/epoch": 1.0, "mld/train/accuracy": 0.5, "mld/val/accuracy": 0.75}


def test_dvclives_steps_stay_the_users(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dvclive = pytest.importorskip("dvclive")
    from accelerate.tracking import DVCLiveTracker

    monkeypatch.chdir(tmp_path)  # it makes a repository of data of where it is
    live = dvclive.Live("dvclive", report=None, save_dvc_exp=False, dvcyaml=None)
    train_accelerate(
        store,
        DVCLiveTracker("run", live=live),
        3,
        lambda accelerator, epoch: accelerator.log({"mine": epoch}),
    )
    rows = list(csv.DictReader((Path(live.plots_dir) / "metrics" / "mine.tsv").open(), delimiter="\t"))
    assert [(row["step"], row["mine"]) for row in rows] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert (Path(live.plots_dir) / "metrics" / "mld" / "val" / "accuracy.tsv").exists()


def test_mmengines_visualizer(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    import mmengine_parts
    from mmengine.hooks import Hook

    from ml_debugger.mmengine import MLDebuggerHook

    class Waits(Hook):
        def before_train_epoch(self, runner: Any) -> None:
            if runner.epoch == 1:
                wait_for_epoch_0(store, "Classifier")

    runner = mmengine_parts.runner(
        tmp_path,
        MLDebuggerHook(log_to_trainer=True),
        Waits(),
        model=mmengine_parts.Classifier(),
        visualizer={"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
    )
    runner.train()
    lines = [json.loads(line) for path in tmp_path.rglob("vis_data/scalars.json") for line in path.open()]
    found = of_epoch_0(lines)
    assert {"mld/train/accuracy", "mld/val/accuracy"} <= found.keys()
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)


def test_where_no_logger_is_known_it_is_said(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    from loop_parts import Indexed, Net

    from ml_debugger.torch import trace

    loader = DataLoader(Indexed(8), 4)
    model, val = trace(Net(), val=loader, log_to_trainer=True, live=False)
    for batch in val:
        model(**batch)
    assert "log_to_trainer=True does nothing here" in caplog.text
