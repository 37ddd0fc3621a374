"""A training in a process of its own, for the tests that kill, fork and launch ranks.

usage: lightning_script.py ROOT EPOCHS [--store S] [--devices N] [--strategy S] [--size N] [--slow SECONDS] [--resume] [--raise-at STEP]
"""

from __future__ import annotations

import argparse
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_parts import IndexModule, loader, quiet_trainer

from ml_debugger.lightning import MLDebuggerCallback


class Slow(pl.Callback):
    """Takes its time over each batch, and says where it is."""

    def __init__(self, seconds: float, raise_at: int) -> None:
        self.seconds = seconds
        self.raise_at = raise_at

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        time.sleep(self.seconds)
        if trainer.global_step == self.raise_at and trainer.global_rank == trainer.world_size - 1:
            raise RuntimeError("planted in the user's step")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("epochs", type=int)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--size", type=int, default=20)
    parser.add_argument("--slow", type=float, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--raise-at", type=int, default=-1)
    parser.add_argument("--store")
    args = parser.parse_args(argv)
    checkpoints = ModelCheckpoint(f"{args.root}/ckpt", every_n_train_steps=2, save_last=True, save_top_k=1)
    trainer = quiet_trainer(
        args.root,
        MLDebuggerCallback(store=args.store, roll_seconds=0.05, roll_mb=0.01, keep_vectors=99),
        Slow(args.slow, args.raise_at),
        checkpoints,
        max_epochs=args.epochs,
        devices=args.devices,
        strategy=args.strategy,
        enable_checkpointing=True,
    )
    resume = newest_checkpoint(Path(args.root, "ckpt")) if args.resume else None
    print("START", os.getpid(), resume, flush=True)
    trainer.fit(IndexModule(), loader(args.size, shuffle=True), loader(10), ckpt_path=resume)
    print("DONE", flush=True)


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint: one may be torn where the process was killed while Lightning wrote it."""
    whole = [path for path in folder.glob("*.ckpt") if zipfile.is_zipfile(path)]
    return str(max(whole, key=lambda path: path.stat().st_mtime_ns)) if whole else None


if __name__ == "__main__":
    main()
