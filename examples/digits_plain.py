"""Real digits in a plain PyTorch loop, recorded by a tracer called in place of the model.

    python examples/digits_plain.py

Records go to `MLD_HOME` (default `~/.mld`). See `digits_data.py` for the faults planted in the data,
`docs/do/cluster.md` for two ranks.
"""

from __future__ import annotations

import argparse
import os

import torch
from digits_data import make_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ml_debugger.training import ClassificationTracer


def main() -> None:
    """Train, validating after every epoch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-samples", type=int, default=8000)
    parser.add_argument("--val-samples", type=int, default=4000)
    args = parser.parse_args()

    torch.manual_seed(0)
    net: nn.Module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
        net = DistributedDataParallel(net)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    splits = {}
    for name, split in zip(("train", "val"), make_digits(args.train_samples, args.val_samples), strict=True):
        ids = torch.arange(len(split))
        data = TensorDataset(torch.from_numpy(split.images), torch.from_numpy(split.labels), ids)
        sampler = DistributedSampler(data, shuffle=name == "train") if ranks > 1 else None
        splits[name] = DataLoader(data, 64, shuffle=name == "train" and sampler is None, sampler=sampler)

    tracer = ClassificationTracer(net, "digits-plain", "v1", force_table_recreate=True)
    for epoch in range(args.epochs):
        net.train()
        with tracer.epoch(epoch, "train"):
            for images, labels, ids in splits["train"]:
                optimizer.zero_grad()
                cross_entropy(tracer(images, labels, ids), labels).backward()
                optimizer.step()
        net.eval()
        right = 0
        with tracer.epoch(epoch, "val"), torch.no_grad():
            for images, labels, ids in splits["val"]:
                right += int((tracer(images, labels, ids).argmax(1) == labels).sum())
        tracer.wait_for_save(epoch)
        print(f"epoch {epoch}: {right} of {len(splits['val'].sampler)} right")


if __name__ == "__main__":
    main()
