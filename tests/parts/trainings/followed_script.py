"""A training that goes on as far as it is told: `FOLDER/epochs` holds how many epochs it may end.

usage: followed_script.py FOLDER    records to FOLDER/store; FOLDER/sealed-N holds when epoch N was sealed

The first batch of an epoch is walked at once, so that a pass is open while it waits. Being killed is its end.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ml_debugger.training import ClassificationTracer

ROWS, BATCH = 120, 30


def allowed(folder: Path) -> int:
    """How many epochs it may end."""
    try:
        return int((folder / "epochs").read_text())
    except (OSError, ValueError):
        return 0


def main(folder: Path) -> None:
    os.environ["MLD_HOME"] = str(folder / "store")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    labels = torch.arange(ROWS) % 3
    x = torch.randn(ROWS, 8) + 2 * F.one_hot(labels, 8)
    tracer = ClassificationTracer(net, "followed", "v1")
    epoch = 0
    while True:
        for split in ("train", "val"):
            for start in range(0, ROWS, BATCH):
                rows = slice(start, start + BATCH)
                ids = [f"{split}{number}" for number in range(ROWS)[rows]]
                logits = tracer(x[rows], labels[rows], ids, dataset_type=split, n_epoch=epoch)
                if split == "train":
                    optimizer.zero_grad()
                    F.cross_entropy(logits, labels[rows]).backward()
                    optimizer.step()
                while split == "train" and allowed(folder) <= epoch:
                    time.sleep(0.02)
        tracer.wait_for_save(epoch)
        (folder / f"sealed-{epoch}").write_text(str(time.time()))
        epoch += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
