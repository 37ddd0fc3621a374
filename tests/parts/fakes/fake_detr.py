"""Stand-ins with the layout of facebookresearch/detr and Deformable-DETR: parts, inputs, outputs, post-processing.

Written from their documented layout; small, random and with none of their code, so the names say Fake.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FakeNestedTensor:
    """A padded batch: `tensors` (B, C, H, W) and `mask` (B, H, W), True where there is padding."""

    def __init__(self, images: list[Tensor]) -> None:
        height, width = (max(i.shape[d] for i in images) for d in (1, 2))
        self.tensors = torch.zeros(len(images), images[0].shape[0], height, width)
        self.mask = torch.ones(len(images), height, width, dtype=torch.bool)
        for k, image in enumerate(images):
            self.tensors[k, :, : image.shape[1], : image.shape[2]] = image
            self.mask[k, : image.shape[1], : image.shape[2]] = False


class FakeTransformer(nn.Module):
    """Layers of queries that look at the mean of the image: hidden states (L, B, Q, D) and the memory."""

    def __init__(self, dim: int, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    def forward(self, memory: Tensor, queries: Tensor) -> tuple[Any, ...]:
        hidden, found = queries[None] + memory[:, None], []
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden)) + queries[None]
            found.append(hidden)
        return torch.stack(found), memory


class FakeDETR(nn.Module):
    """Softmax with "no object" as the last of `num_classes` + 1 outputs."""

    def __init__(self, num_classes: int = 6, num_queries: int = 12, dim: int = 16) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.backbone = nn.Conv2d(3, dim, 4, stride=4)
        self.transformer = FakeTransformer(dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.bbox_embed = nn.Linear(dim, 4)

    def forward(self, samples: Any) -> dict[str, Any]:
        if isinstance(samples, (list, tuple)):
            samples = FakeNestedTensor(list(samples))
        images = samples if isinstance(samples, Tensor) else samples.tensors
        hidden, _ = self.transformer(self.backbone(images).mean((2, 3)), self.query_embed.weight)
        logits, boxes = self.class_embed(hidden), self.bbox_embed(hidden).sigmoid()
        aux = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits[:-1], boxes[:-1], strict=True)]
        return {"pred_logits": logits[-1], "pred_boxes": boxes[-1], "aux_outputs": aux}


class FakeDeformableDETR(nn.Module):
    """A class layer per decoder layer, sigmoids, no "no object"; in train denoising queries come first."""

    def __init__(
        self, num_classes: int = 6, num_queries: int = 12, dim: int = 16, denoising: int = 0
    ) -> None:
        super().__init__()
        self.num_queries, self.denoising = num_queries, denoising
        self.backbone = nn.Conv2d(3, dim, 4, stride=4)
        self.transformer = FakeTransformer(dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.denoising_embed = nn.Embedding(max(denoising, 1), dim)
        self.class_embed = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(2))
        self.bbox_embed = nn.ModuleList(nn.Linear(dim, 4) for _ in range(2))

    def forward(self, samples: Any, targets: Any = None) -> dict[str, Any]:
        queries = self.query_embed.weight
        if self.training and targets is not None and self.denoising:
            queries = torch.cat([self.denoising_embed.weight, queries])
        hidden, _ = self.transformer(self.backbone(samples.tensors).mean((2, 3)), queries)
        logits = [layer(h) for layer, h in zip(self.class_embed, hidden, strict=True)]
        boxes = [layer(h).sigmoid() for layer, h in zip(self.bbox_embed, hidden, strict=True)]
        return {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}


def _pixels(boxes: Tensor, target_sizes: Tensor) -> Tensor:
    height, width = target_sizes.unbind(1)
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1) * torch.stack([width, height] * 2, 1)[:, None]


def fake_postprocess_softmax(outputs: dict[str, Tensor], sizes: Tensor) -> list[dict[str, Tensor]]:
    """All queries with their best class, as DETR's PostProcess documents it."""
    scores, labels = outputs["pred_logits"].softmax(-1)[..., :-1].max(-1)
    boxes = _pixels(outputs["pred_boxes"], sizes)
    return [{"scores": s, "labels": n, "boxes": b} for s, n, b in zip(scores, labels, boxes, strict=True)]


def fake_postprocess_sigmoid(outputs: dict[str, Tensor], sizes: Tensor, top: int) -> list[dict[str, Tensor]]:
    """The best (query, class) pairs, as Deformable DETR's PostProcess documents it."""
    logits = outputs["pred_logits"]
    scores, index = logits.sigmoid().flatten(1).topk(top, 1)
    boxes, queries = _pixels(outputs["pred_boxes"], sizes), index // logits.shape[2]
    return [
        {"scores": scores[i], "labels": index[i] % logits.shape[2], "boxes": boxes[i][queries[i]]}
        for i in range(len(logits))
    ]
