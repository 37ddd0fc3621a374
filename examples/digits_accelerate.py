"""Real digits in a loop of one's own under Accelerate, recorded by one line.

    python examples/digits_accelerate.py

Records and scalars go to `MLD_HOME` (default `~/.mld`). See `digits_data.py` for the faults planted in the
data, `docs/do/cluster.md` for two ranks.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits_data import make_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger.accelerate import trace


def main() -> None:
    """Train, validating after every epoch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-samples", type=int, default=8000)
    parser.add_argument("--val-samples", type=int, default=4000)
    args = parser.parse_args()

    set_seed(0)
    splits = make_digits(args.train_samples, args.val_samples)
    train, val = (TensorDataset(torch.from_numpy(s.images), torch.from_numpy(s.labels)) for s in splits)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip

    accelerator = Accelerator(cpu=True, log_with="ml_debugger")
    accelerator.init_trackers("digits", config=vars(args))
    model, optimizer, train_dl, val_dl = accelerator.prepare(
        net,
        torch.optim.Adam(net.parameters(), 1e-3),
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(val, batch_size=256),
    )
    model, train_dl, val_dl = trace(
        accelerator, model, train=train_dl, val=val_dl, model_name="digits-accelerate"
    )

    for epoch in range(args.epochs):
        model.train()
        for images, labels in train_dl:
            optimizer.zero_grad()
            accelerator.backward(cross_entropy(model(images), labels))
            optimizer.step()
        model.eval()
        right = torch.zeros(1)
        with torch.no_grad():
            for images, labels in val_dl:
                hits = (model(images).argmax(1) == labels).float()
                right += accelerator.gather_for_metrics(hits).sum()
        accelerator.log({"accuracy": right / len(val)}, step=epoch)
        accelerator.print(f"epoch {epoch}: accuracy {right.item() / len(val):.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
