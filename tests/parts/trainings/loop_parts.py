"""A dataset whose sample says its own index and a model whose feature holds it; no framework."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Indexed(torch.utils.data.Dataset):
    """Sample i is {"x": [i, noise, noise, noise], "labels": i % 3}."""

    def __init__(self, size: int, first: int = 0) -> None:
        self.size, self.first = size, first

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = self.first + index
        noise = torch.sin(torch.arange(1, 4) * (i + 1.0))
        return {"x": torch.cat([torch.tensor([float(i)]), noise]), "labels": i % 3}


class Net(nn.Module):
    """One Linear: its input, the default feature, begins with the sample's index."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(x)
        out = {"logits": logits}
        return out if labels is None else {"loss": F.cross_entropy(logits, labels), **out}
