"""A training in a process of its own, for the tests that kill and launch ranks.

usage: mmengine_script.py WORK_DIR [--epochs N] [--size N] [--slow SECONDS] [--resume] [--raise-at ITERATION] [--trace]

Under torchrun every process is a rank (gloo). `--trace` prints every collective call made by our hook.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine_parts import VAL_OFFSET, IndexedDataset, PlainModel, loader, runner

import ml_debugger
import mld_core
from ml_debugger.mmengine import MLDebuggerHook


class Slow(Hook):
    """Takes its time over each batch; may raise on the last rank."""

    priority = "VERY_LOW"

    def __init__(self, seconds: float, raise_at: int) -> None:
        self.seconds, self.raise_at = seconds, raise_at

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        time.sleep(self.seconds)
        if runner.iter + 1 == self.raise_at and runner.rank == runner.world_size - 1:
            raise RuntimeError("planted in the user's step")


def trace_collectives() -> None:
    """Prints each public collective that was called from our own files."""
    ours = tuple(str(Path(module.__file__).parent) for module in (ml_debugger, mld_core))
    names = (
        "all_gather",
        "all_gather_object",
        "all_reduce",
        "barrier",
        "broadcast",
        "broadcast_object_list",
        "gather",
    )
    for name in names:
        real = getattr(dist, name)

        def traced(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
            if any(frame.filename.startswith(ours) for frame in traceback.extract_stack()):
                print(f"COLLECTIVE {_name}", flush=True)
            return _real(*args, **kwargs)

        setattr(dist, name, traced)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work_dir")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=21)
    parser.add_argument("--slow", type=float, default=0)
    parser.add_argument("--raise-at", type=int, default=-1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--trace", action="store_true")
    args = parser.parse_args(argv)
    options: dict[str, Any] = {}
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False, "device_ids": None}
        options = {"launcher": "pytorch", "cfg": {"model_wrapper_cfg": wrapper}}
    if args.trace:
        trace_collectives()
    if args.resume:  # MMEngine 0.10.7 cannot read its own checkpoints with torch >= 2.6
        real = torch.load
        torch.load = lambda *a, **k: real(*a, **{**k, "weights_only": False})
    built = runner(
        args.work_dir,
        MLDebuggerHook(roll_seconds=0.05, roll_mb=0.01),
        Slow(args.slow, args.raise_at),
        model=PlainModel(),
        train_dataloader=loader(IndexedDataset(args.size), shuffle=True),
        val_dataloader=loader(IndexedDataset(9, VAL_OFFSET)),
        train_cfg={"by_epoch": True, "max_epochs": args.epochs},
        default_hooks={"logger": None, "checkpoint": {"type": "CheckpointHook", "interval": 1}},
        resume=args.resume,
        **options,
    )
    print("START", os.getpid(), flush=True)
    built.train()
    print("DONE", flush=True)


if __name__ == "__main__":
    main()
