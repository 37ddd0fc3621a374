"""What recording a detector's training costs per step: RetinaNet and a DETR, with and without us, in one process.

    python tests/benchmarks/bench_detection.py [--steps 20] [--size 320] [--write]

A step is forward, loss, backward and optimizer on 4 images of random pixels, random weights; steps with and without
the recorder alternate, figures are medians. With `--write` the table goes to docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from _table import markdown, write_section
from torchvision.models import detection
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from mld_core.tracing.run.recorder import Recorder

BATCH, CLASSES, OBJECTS = 4, 20, 8
Step = Callable[[], tuple[Any, Any, torch.Tensor]]


def boxes(size: int) -> torch.Tensor:
    """(8, 4) xyxy pixels."""
    corner = torch.rand(OBJECTS, 2) * size * 0.7
    return torch.cat([corner, corner + 8 + torch.rand(OBJECTS, 2) * size * 0.2], 1)


def retinanet(size: int) -> tuple[torch.nn.Module, Step]:
    """Torchvision's RetinaNet with a ResNet-50; its training forward holds the head's outputs."""
    model = detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=size, max_size=size
    )
    torch.nn.init.constant_(model.head.classification_head.cls_logits.bias, -2.0)  # else nothing passes
    images = [torch.rand(3, size, size) for _ in range(BATCH)]
    targets = [
        {
            "boxes": boxes(size),
            "labels": torch.randint(CLASSES, (OBJECTS,)),
            "image_id": torch.tensor(i),
        }
        for i in range(BATCH)
    ]

    def step() -> tuple[Any, Any, torch.Tensor]:
        return (images, targets), None, sum(model(images, targets).values())

    return model, step


def detr(size: int) -> tuple[torch.nn.Module, Step]:
    """Hugging Face's DETR, 100 queries, 6 + 6 layers, a ResNet-18 sized backbone."""
    backbone = ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512])
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_labels=CLASSES,
        d_model=128,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
    )
    model = DetrForObjectDetection(config)
    pixels = torch.rand(BATCH, 3, size, size)
    labels = []
    for i in range(BATCH):
        xyxy = boxes(size) / size
        centre, extent = (xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]
        labels.append(
            {
                "class_labels": torch.randint(CLASSES, (OBJECTS,)),
                "boxes": torch.cat([centre, extent], 1),
                "image_id": torch.tensor([i]),
            }
        )
    batch = {"pixel_values": pixels, "labels": labels}

    def step() -> tuple[Any, Any, torch.Tensor]:
        output = model(**batch)
        return batch, output, output.loss

    return model, step


def measure(name: str, model: torch.nn.Module, step: Step, steps: int) -> list[str]:
    """One row of the table."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    walls: dict[bool, list[float]] = {False: [], True: []}
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(model_name="bench", version_name="v1", store=folder, task="detection")
        recorder.start(model, recorder.resolve_names(model), rank=0, world_size=1, framework="")
        recorder.begin_pass("train", 0, mode="train")
        process = psutil.Process()
        memory = 0
        for i in range(2 * steps + 4):
            traced = i % 2 == 1
            begun, spent = time.perf_counter(), 0.0
            if traced:
                inside = time.thread_time()
                recorder.begin_batch()
                spent += time.thread_time() - inside
            batch, output, loss = step()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if traced:
                inside = time.thread_time()
                recorder.record(batch, output, batch_idx=i // 2, global_step=i)
                spent += time.thread_time() - inside
            if i == 3:
                memory = process.memory_info().rss
            if i >= 4:
                walls[traced].append(time.perf_counter() - begun)
                if traced:
                    ours.append(spent)
        grown = process.memory_info().rss - memory
        with contextlib.redirect_stdout(io.StringIO()):
            recorder.end_pass()
            account = recorder.finish()
    assert account.rows_lost == 0, account
    assert account.rows_written == BATCH * (steps + 2), account
    bare, with_us = statistics.median(walls[False]), statistics.median(walls[True])
    return [
        name,
        f"{bare * 1e3:.0f} ms",
        f"{statistics.median(ours) * 1e3:.2f} ms",
        f"{statistics.median(ours) / bare:.2%}",
        f"{with_us / bare:.3f}",
        f"{account.bytes_written / account.rows_written / 1024:.0f} KiB",
        f"{grown / 2**20:+.0f} MB",
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=320, help="edge of the images, pixels")
    parser.add_argument("--write", action="store_true", help="write the table to docs/performance.md")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    rows = [
        measure(name, *make(chosen.size), chosen.steps)
        for name, make in (("RetinaNet, ResNet-50", retinanet), ("DETR (Hugging Face)", detr))
    ]
    header = [
        "training step", "without us", "added training-thread CPU, calls of ours", "of the step",
        "wall time with / without", "stored per image", "memory grown",
    ]  # fmt: skip
    body = (
        "## Detectors, recorded as they train\n\n"
        f"4 images of {chosen.size} pixels, {torch.get_num_threads()} threads, "
        "`python tests/benchmarks/bench_detection.py --write`. The boxes are read on the writer thread, which "
        "shares the cores here: its work shows in the wall time.\n\n" + markdown(header, rows)
    )
    print(body)
    if chosen.write:
        write_section("performance.md", "detectors", body)


if __name__ == "__main__":
    main()
