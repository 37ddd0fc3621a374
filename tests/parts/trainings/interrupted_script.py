"""A training of three epochs that waits in the middle of the second one for Ctrl-C.

usage: interrupted_script.py huggingface|lightning|torch FOLDER [--lives-on]

FOLDER/inside says that it waits. With `--lives-on` the process goes on after the KeyboardInterrupt, as a notebook does.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from loop_parts import Indexed, Net
from torch.utils.data import DataLoader

FOLDER = Path(sys.argv[2])
OPTIONS: dict[str, Any] = {
    "model_name": "Net",
    "roll_seconds": 1000.0,
}  # nothing but the end makes rows durable
seen = 0


class Waiting(Indexed):
    """The training split: the seventh sample of the second epoch does not come."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        global seen  # noqa: PLW0603
        seen += 1
        if seen == 8 + 7:
            (FOLDER / "inside").touch()
            while True:
                time.sleep(0.01)
        return super().__getitem__(index)


def huggingface() -> None:
    from hf_parts import trainer

    from ml_debugger.huggingface import MLDebuggerCallback

    made = trainer(
        FOLDER / "out",
        MLDebuggerCallback(**OPTIONS),
        train=Waiting(8),
        val=4,
        num_train_epochs=3,
        eval_strategy="epoch",
    )
    made.train()


def lightning() -> None:
    import lightning.pytorch as pl

    from ml_debugger.lightning import MLDebuggerCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(**batch)["loss"]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.net(**batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[MLDebuggerCallback(**OPTIONS)],
    ).fit(Module(), DataLoader(Waiting(8), 2), DataLoader(Indexed(4), 2))


def loop() -> None:
    from ml_debugger.torch import trace

    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    model, train, val = trace(net, train=DataLoader(Waiting(8), 2), val=DataLoader(Indexed(4), 2), **OPTIONS)
    for _ in range(3):
        for batch in train:
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for batch in val:
                model(**batch)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    try:
        {"huggingface": huggingface, "lightning": lightning, "torch": loop}[sys.argv[1]]()
    except KeyboardInterrupt:
        if "--lives-on" not in sys.argv:
            raise
        while True:
            time.sleep(0.01)
