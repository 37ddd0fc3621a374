"""What the callback adds to a step of each framework's own trainer: wall and process CPU, with and without us.

    python tests/benchmarks/bench_wrappers.py [--quick]

The same batches as in bench_tracer.py (64 x 3 x 64 x 64, ids and content hash on, 512 features, 100 logits), a model
that makes logits from given features: the trainer's own work is all there is beside ours. Wall: median step.
Process CPU: mean over the steps, the writer's work included. Trainings without and with us in turn, medians of the
pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from _table import markdown, write_section
from bench_tracer import CLASSES, GivenFeatures, batches, verdict
from torch import nn
from torch.utils.data import DataLoader

Clock = list[tuple[float, float]]
"""(perf_counter, process_time) at every step."""
Ours = dict[str, Any]
"""Arguments of the callback."""


class Batches(torch.utils.data.Dataset[Any]):
    """Whole batches as items: no collating beside what is measured."""

    def __init__(self, steps: int) -> None:
        self.data = batches(8)
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.data[index % len(self.data)])


def lightning(steps: int, clock: Clock, ours: Ours | None) -> None:
    """One epoch of `lightning.pytorch.Trainer`."""
    import lightning.pytorch as pl

    from ml_debugger.lightning import MLDebuggerCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = GivenFeatures()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-3)

    class Ticks(pl.Callback):
        def on_before_zero_grad(self, *_: Any) -> None:
            clock.append((time.perf_counter(), time.process_time()))

    added = [MLDebuggerCallback(**ours)] if ours else []
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[*added, Ticks()], **quiet)
    trainer.fit(Module(), DataLoader(Batches(steps), batch_size=None))


def huggingface(steps: int, clock: Clock, ours: Ours | None) -> None:
    """One epoch of `transformers.Trainer`."""
    import transformers

    from ml_debugger.huggingface import MLDebuggerCallback

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = GivenFeatures()

        # Without us nobody takes `input_id` out of the batch again.
        def forward(
            self, image: torch.Tensor, labels: torch.Tensor, input_id: Any = None
        ) -> dict[str, torch.Tensor]:
            logits = self.net(image)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Ticks(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.append((time.perf_counter(), time.process_time()))

    def collate(items: list[Any]) -> dict[str, Any]:
        return {"image": items[0]["image"], "labels": items[0]["label"], "input_id": items[0]["input_id"]}

    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=1,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            report_to="none",
        )

        trainer = transformers.Trainer(
            Model(),
            args,
            train_dataset=Batches(steps),
            data_collator=collate,
            callbacks=[*([MLDebuggerCallback(**ours)] if ours else []), Ticks()],
        )
        trainer.train()


def mmengine(steps: int, clock: Clock, ours: Ours | None) -> None:
    """One epoch of `mmengine.runner.Runner`."""
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    from ml_debugger.mmengine import MLDebuggerHook

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = GivenFeatures()

        def forward(
            self, image: torch.Tensor, label: torch.Tensor, input_id: Any, mode: str = "tensor"
        ) -> Any:
            logits = self.net(image)
            return {"loss": nn.functional.cross_entropy(logits, label)} if mode == "loss" else logits

    class Ticks(Hook):
        def before_train_iter(self, *_: Any, **__: Any) -> None:
            clock.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            Model(),
            folder,
            train_dataloader=DataLoader(Batches(steps), batch_size=1, collate_fn=lambda items: items[0]),
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-3}},
            custom_hooks=[*([MLDebuggerHook(**ours)] if ours else []), Ticks()],
            default_hooks={"checkpoint": None, "logger": None},
            experiment_name=f"bench-{time.monotonic_ns()}",
        )
        runner.train()


def step_time(
    train: Callable[[int, Clock, Ours | None], None], steps: int, ours: Ours | None
) -> tuple[float, float]:
    """(median wall, mean process CPU) of a step in ms; the first 20 steps are left out."""
    clock: Clock = []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(steps, clock, ours)
        end = time.process_time()  # behind the training's end: what waited to be written is on disk
    wall = statistics.median(b[0] - a[0] for a, b in itertools.pairwise(clock[20:]))
    return wall * 1e3, (end - clock[20][1]) / (len(clock) - 20) * 1e3


def added(train: Callable[[int, Clock, Ours | None], None], steps: int) -> tuple[float, float, float]:
    """ms: wall of a step without us, wall and process CPU that we add."""
    bare, bare_cpu = step_time(train, steps, None)
    with tempfile.TemporaryDirectory() as store:
        wall, cpu = step_time(train, steps, {"store": store})
    return bare, wall - bare, cpu - bare_cpu


TARGETS = {"lightning": 0.15, "huggingface": 0.15, "mmengine": 0.1}
CPU_TARGET = 0.7


def main() -> None:
    """Measure the three, print, write docs/performance.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps; nothing is written to the docs")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    steps = 80 if args.quick else 300
    rows = []
    for train in (lightning, huggingface, mmengine):
        trials = [added(train, steps) for _ in range(1 if args.quick else 5)]
        bare, wall, cpu = (statistics.median(one) for one in zip(*trials, strict=True))
        target = TARGETS[train.__name__]
        rows.append(
            [
                *[train.__name__, f"{bare:.3f} ms"],
                *[f"{wall:.3f} ms", f"<= {target} ms: {verdict(wall, target, at_most=True)}"],
                *[f"{cpu:.3f} ms", f"<= {CPU_TARGET} ms: {verdict(cpu, CPU_TARGET, at_most=True)}"],
            ]
        )
    table = markdown(["trainer", "its step without us", "wall added", "", "process CPU added", ""], rows)
    print(table)
    if not args.quick:
        command = (
            f"Command: `python tests/benchmarks/bench_wrappers.py`; {CLASSES} classes, ids and hash on.\n\n"
        )
        load = f"\n\nLoad average at the end: {os.getloadavg()[0]:.1f}."
        write_section("performance.md", "wrappers", command + table + load)


if __name__ == "__main__":
    main()
