"""A detector small enough to know what it says, with its adapter, and the records of a run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mld_core.adapters import registry
from mld_core.adapters.base import Adapter, Call, FrameGeometry, ModelCall, Parsed, Thresholds
from mld_core.adapters.outputs import DetectionOutput
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import PassSelection, select
from mld_core.tracing.run.recorder import Recorder

CLASSES = 3


class CornerNet(nn.Module):
    """For an image whose first pixel is v it finds round(v) boxes [k, k, k + 4, k + 5], k = 0, 1, ...

    Box k is of class k % 3; its logits are 3 for that class and k elsewhere. In training: losses only.
    """

    def __init__(self, *, trains: bool = False, padding: int = 0) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, CLASSES, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.score_thresh = 0.1
        self.max_detections = 100
        self.trains = trains
        self.padding = padding
        self.calls = 0

    def forward(self, images: Any, targets: Any = None) -> Any:
        self.calls += 1
        if self.training and not self.trains:
            assert targets is not None
            return {"loss": self.scale * sum(image.mean() for image in images)}
        return [self._detect(image) for image in images]

    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        self.head(image[None])
        n = int(image.flatten()[0].round())
        k = torch.arange(n, dtype=torch.float32)
        logits = k[:, None].repeat(1, CLASSES)
        logits[torch.arange(n), torch.arange(n) % CLASSES] = 3.0
        boxes = torch.stack([k, k, k + 4, k + 5], dim=1) * self.scale
        scores = 0.9 - 0.05 * k
        keep = (scores >= self.score_thresh) & (torch.arange(n) < self.max_detections)
        found = {
            "boxes": boxes[keep],
            "scores": scores[keep],
            "labels": (torch.arange(n) % CLASSES)[keep],
            "logits": logits[keep],
            "features": torch.stack([k, k * 0 + n], dim=1)[keep],
        }
        if self.padding:  # a large tensor beside: held by reference
            found["raw"] = torch.zeros(self.padding)
        return found


class CornerAdapter(Adapter):
    """Reads `CornerNet`. `gate`, where it is set, holds the writer thread up; `fault` makes it stumble."""

    family = "corner net"
    gate: threading.Event | None = None
    fault = ""

    @staticmethod
    def detect(model: Any) -> bool:
        return isinstance(model, CornerNet)

    def n_class(self) -> int:
        return CLASSES

    def thresholds(self) -> Thresholds:
        return Thresholds(score=self.model.score_thresh, max_detections=self.model.max_detections)

    @contextmanager
    def applied(self, limits: Thresholds) -> Iterator[None]:
        before = self.model.score_thresh, self.model.max_detections
        try:
            self.model.score_thresh = before[0] if limits.score is None else limits.score
            self.model.max_detections = before[1] if limits.max_detections is None else limits.max_detections
            yield
        finally:
            self.model.score_thresh, self.model.max_detections = before

    def keep(self, alias: str | None, call: Call) -> Call:
        if self.fault == "keep":
            raise RuntimeError("keep stumbles")
        return call

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        if self.gate is not None:
            assert self.gate.wait(20)
        if self.fault == "parse":
            raise RuntimeError("parse stumbles")
        if not isinstance(call.output, list):
            return None
        assert not torch.is_grad_enabled()
        keep = [(d["scores"] >= (limits.score or 0)) for d in call.output]
        frames = [
            {k: v[m] for k, v in d.items() if k != "raw"} for d, m in zip(call.output, keep, strict=True)
        ]
        names = ("boxes", "scores", "labels", "logits", "features")
        return Parsed(
            DetectionOutput(**{name: [f[name] for f in frames] for name in names}),
            activation="softmax",
            background=None,
            cap_hit=[len(f["scores"]) == limits.max_detections for f in frames],
            thresholds=limits,
            geometry=[FrameGeometry(image.shape[1], image.shape[2]) for image in call.args[0]],
        )

    def truths(self, call: ModelCall, truth: Any) -> Any:
        if self.fault == "truths":
            raise RuntimeError("truths stumbles")


@contextmanager
def registered(*families: type[Adapter]) -> Iterator[None]:
    """The families are known within."""
    for family in families:
        registry.register(family)
    try:
        yield
    finally:
        for family in families:
            registry._registered.remove(family)


def image(n: int, height: int = 16, width: int = 24) -> Tensor:
    """An image in which `n` boxes are found."""
    return torch.full((3, height, width), float(n))


def truth(*boxes: tuple[float, ...], label: int = 0) -> dict[str, Tensor]:
    """The truth of one image."""
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.full((len(boxes),), label),
    }


def recorder(root: Path, trained: nn.Module, **options: Any) -> Recorder:
    """A recorder that has started."""
    made = Recorder(model_name="net", version_name="v", store=str(root), **options)
    made.start(trained, made.resolve_names(trained), rank=0, world_size=1, framework="")
    assert made.session is not None, made.guard.tracebacks
    return made


def walk(made: Recorder, model: nn.Module, batches: list[Any], split: str = "val", n_epoch: int = 0) -> None:
    """One pass over batches (images, targets); the model is called as torchvision's are."""
    made.begin_pass(split, n_epoch, mode="train" if model.training else "eval")
    for index, batch in enumerate(batches):
        made.begin_batch(batch)
        outputs = model(batch[0], batch[1]) if model.training else model(batch[0])
        made.record(batch, outputs, batch_idx=index)
    made.end_pass()


def run(root: Path, split: str = "val") -> PassSelection:
    """The one pass of a split that was recorded last."""
    (found,) = select(Store(root), RunKey("net", "v"), dataset_type=split)
    return found


def frames(root: Path, family: str, split: str = "val") -> Any:
    """A family of a split's last pass, as a DataFrame."""
    return run(root, split).table(family).to_pandas()


def boxes_of(table: Any) -> np.ndarray:
    """The column `box` as (N, 4)."""
    return np.stack(list(table.box)) if len(table) else np.zeros((0, 4))
