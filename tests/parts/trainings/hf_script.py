"""A training by transformers.Trainer in a process of its own, for the tests that kill it.

usage: hf_script.py OUTPUT_DIR [--epochs N] [--slow SECONDS] [--resume]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from hf_parts import trainer
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from ml_debugger.huggingface import MLDebuggerCallback


class Slow(TrainerCallback):
    """Takes its time over each step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        time.sleep(self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--slow", type=float, default=0)
    parser.add_argument("--resume", action="store_true")
    chosen = parser.parse_args()
    made = trainer(
        chosen.folder,
        MLDebuggerCallback(roll_seconds=0.05, roll_mb=0.01),
        Slow(chosen.slow),
        train=8,
        val=5,
        num_train_epochs=chosen.epochs,
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=3,
    )
    last = get_last_checkpoint(str(chosen.folder)) if chosen.resume and chosen.folder.exists() else None
    made.train(resume_from_checkpoint=last)
    print("DONE", flush=True)


if __name__ == "__main__":
    main()
