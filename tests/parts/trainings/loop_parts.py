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


class Sentences(torch.utils.data.Dataset):
    """Sample i is 2 to 8 tokens that begin with its index."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = [1 + index, *(40 + (index * k) % 9 for k in range(1 + index % 7))]
        return {"input_ids": tokens, "labels": index % 3}


def padded(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of sentences, as long as its longest one."""
    longest = max(len(one["input_ids"]) for one in samples)
    rows = [one["input_ids"] + [0] * (longest - len(one["input_ids"])) for one in samples]
    ids = torch.tensor(rows)
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([one["labels"] for one in samples]),
    }


class Tokens(nn.Module):
    """The mean of the tokens that are no padding, and one Linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words, self.head = nn.Embedding(64, 4), nn.Linear(4, 3)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        mask = attention_mask[..., None].float()
        logits = self.head((self.words(input_ids) * mask).sum(1) / mask.sum(1))
        out = {"logits": logits}
        return out if labels is None else {"loss": F.cross_entropy(logits, labels), **out}
