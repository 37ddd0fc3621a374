"""Two small networks, trained on the spot: logits, hidden layers and every epoch's softmax are what a recorder keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pictures import Images
from torch import nn


class MLP(nn.Module):
    """Two hidden layers, 128 and 64 wide, both recorded."""

    def __init__(self, pixels: int, n_class: int) -> None:
        super().__init__()
        self.first, self.second, self.head = (
            nn.Linear(pixels, 128),
            nn.Linear(128, 64),
            nn.Linear(64, n_class),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        a = torch.relu(self.first(x.flatten(1)))
        b = torch.relu(self.second(a))
        return self.head(b), {"hidden_1": a, "hidden_2": b}


class ConvNet(nn.Module):
    """Two convolutions (pooled) and a dense layer, all three recorded."""

    def __init__(self, n_class: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.dense, self.head = nn.LazyLinear(64), nn.Linear(64, n_class)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        a = torch.max_pool2d(torch.relu(self.first(x[:, None])), 2)
        b = torch.max_pool2d(torch.relu(self.second(a)), 2)
        c = torch.relu(self.dense(b.flatten(1)))
        return self.head(c), {"conv_1": a.mean((2, 3)), "conv_2": b.mean((2, 3)), "dense": c}


@dataclass(frozen=True)
class Recorded:
    """One split as recorded: logits, features by layer, and each epoch's softmax (train split only)."""

    logits: NDArray[np.float32]
    features: dict[str, NDArray[np.float32]]
    epochs: NDArray[np.float32] | None = None


def train(
    images: Images, kind: str, seed: int, epochs: int, n_class: int
) -> tuple[nn.Module, NDArray[np.float32]]:
    """Train with Adam; returns the network and the (T, n, K) softmax of the train split after every epoch."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    net: nn.Module = MLP(x[0].numel(), n_class) if kind == "mlp" else ConvNet(n_class)
    net(x[:2])
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    history = []
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows])[0], y[rows]).backward()
            optimiser.step()
        with torch.no_grad():
            history.append(torch.cat([torch.softmax(net(part)[0], 1) for part in x.split(2_000)]).numpy())
    return net, np.stack(history)


def record(net: nn.Module, images: Images, epochs: NDArray[np.float32] | None = None) -> Recorded:
    """Run the network over a split."""
    with torch.no_grad():
        outputs = [net(part) for part in torch.from_numpy(images.x).split(2_000)]
    logits = torch.cat([out[0] for out in outputs]).numpy()
    layers = outputs[0][1]
    return Recorded(
        logits, {name: torch.cat([out[1][name] for out in outputs]).numpy() for name in layers}, epochs
    )
