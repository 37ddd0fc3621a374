"""What recording adds to a training step: ratios in one process, blocks without and with us in turn.

    python tests/benchmarks/bench_steps.py [--quick] [--device cuda] [--only NAME ...] [--write]

At most 25 s a case. Every block walks a loader of its own, so that ids are the loader's indices; the content hash is on. Wall is the mean
step of a block with us over that of the block without before it, median of all pairs. Inside: wall within our calls,
median and 99th percentile. Waiting: wall within our calls less the CPU time of the thread there (the interpreter's
lock, the processor). CPU: process time of a block with us, its writing to the disk included, less that of the block
before, per batch.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from _table import markdown, write_section
from torch import nn
from torch.utils.data import DataLoader

from mld_core.tracing.run.recorder import Recorder

CLASSES = 100
HEAD = [
    "model",
    "batch",
    "step",
    "with / without us",
    "inside, median",
    "p99",
    "waiting",
    "CPU a batch",
    "writer's",
    "hashing",
]
Batch = Any
_CASE_S = 25.0


class Block(nn.Module):
    """ResNet's basic block, eight channels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 8, H, W) to the same."""
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class LaunchBound(nn.Module):
    """ResNet-18's modules on next to no arithmetic: what a GPU step asks of the interpreter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(*[Block() for _ in range(8)])
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 100), of the first pixel of each image."""
        return self.fc(self.pool(self.blocks(self.stem(images[:, :, :1, :1]))).flatten(1))


class Patches(nn.Module):
    """The cheapest model of large images."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.fc = nn.AvgPool2d(56), nn.Linear(48, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 100)."""
        return self.fc(self.pool(images).flatten(1))


@dataclass
class Case:
    """One row: a model, its batches and its step.

    Attributes:
        make: the model.
        batch: makes one batch of n rows.
        loss: of (model, batch).
        n: rows of a batch.
        bf16: under autocast.
        workers: of the loader; each makes batches of its own.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch], torch.Tensor]
    n: int = 64
    shape: str = "64 x 3 x 64 x 64"
    bf16: bool = False
    workers: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def images(size: int) -> Callable[[int], Batch]:
    """Batches of square images with labels."""
    return lambda n: {"image": torch.randn(n, 3, size, size), "label": torch.randint(0, CLASSES, (n,))}


def image_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of a classifier of images."""
    return nn.functional.cross_entropy(model(batch["image"]), batch["label"])


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 512), nn.ReLU(), nn.Linear(512, CLASSES))


def _resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=CLASSES)


def _vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, img_size=64)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    return BertForSequenceClassification(BertConfig(vocab_size=1000, num_labels=CLASSES, **sizes))


def _tokens(n: int) -> Batch:
    labels, mask = torch.randint(0, CLASSES, (n,)), torch.ones(n, 64, dtype=torch.long)
    return {"input_ids": torch.randint(0, 1000, (n, 64)), "attention_mask": mask, "labels": labels}


def _detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 64], embedding_size=16
    )
    backbone.out_features = ["stage4"]
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2}
    sizes |= {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 50, "num_labels": 10}
    bare = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}
    return DetrForObjectDetection(DetrConfig(**bare, backbone_config=backbone, **sizes, **heads))


def _detr_batch(n: int) -> Batch:
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2]])
    labels = [{"class_labels": torch.tensor([1, 2]), "boxes": boxes.clone()} for _ in range(n)]
    return {"pixel_values": torch.randn(n, 3, 128, 128), "labels": labels}


def _retinanet() -> nn.Module:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    return RetinaNet(backbone, num_classes=10, min_size=128, max_size=128)


def _retina_batch(n: int) -> Batch:
    boxes = torch.tensor([[10.0, 10.0, 60.0, 60.0], [30.0, 30.0, 90.0, 90.0]])
    targets = [{"boxes": boxes.clone(), "labels": torch.tensor([1, 2])} for _ in range(n)]
    return [torch.rand(3, 128, 128) for _ in range(n)], targets


CASES = [
    Case("MLP", _mlp, images(64), image_loss),
    Case("launch-bound", LaunchBound, images(64), image_loss),
    Case("ResNet-18", _resnet, images(64), image_loss),
    Case("ViT-tiny", _vit, images(64), image_loss),
    Case("BERT, small", _bert, _tokens, lambda m, b: m(**b).loss, shape="64 x 64 tokens"),
    Case(
        "patches, bf16, 8 workers", Patches, images(224), image_loss, n=256, shape="256 x 3 x 224 x 224", bf16=True,
        workers=8,
    ),
    Case("DETR, small", _detr, _detr_batch, lambda m, b: m(**b).loss, n=4, shape="4 x 3 x 128 x 128"),
    Case(
        "RetinaNet, ResNet-18", _retinanet, _retina_batch, lambda m, b: sum(m(*b).values()), n=2,
        shape="2 x 3 x 128 x 128",
    ),
]  # fmt: skip


class Collate:
    """Gives prepared batches in turn; a worker prepares its own."""

    def __init__(self, case: Case, kept: int) -> None:
        self.case, self.kept, self.ready = case, kept, []

    def __call__(self, indices: list[int]) -> Batch:
        if not self.ready:
            torch.manual_seed(0)
            self.ready = [self.case.batch(self.case.n) for _ in range(self.kept)]
        return self.ready[indices[0] // self.case.n % self.kept]


def moved(batch: Batch, device: str) -> Batch:
    """The batch on a device, as a loop moves it."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: moved(value, device) for key, value in batch.items()}
    return type(batch)(moved(value, device) for value in batch)


@dataclass
class Seen:
    """What was measured, in seconds."""

    bare: list[float] = field(default_factory=list)
    traced: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    threads: list[list[float]] = field(default_factory=list)

    def ratio(self) -> float:
        """Step with us over step without, median of the pairs."""
        return statistics.median(t / b for t, b in zip(self.traced, self.bare, strict=True))

    def row(self, case: Case) -> list[str]:
        """As the table has it."""
        inside = sorted(self.inside)
        ms = [statistics.median(self.bare), statistics.median(inside), inside[int(0.99 * len(inside))]]
        step, median, p99 = (f"{1e3 * value:.3f} ms" for value in ms)
        waiting, cpu = (
            f"{1e3 * v:.3f} ms" for v in (statistics.mean(self.waiting), statistics.median(self.cpu))
        )
        own = [f"{1e3 * statistics.median(one):.3f} ms" for one in zip(*self.threads, strict=True)]
        return [case.name, case.shape, step, f"{self.ratio():.3f}", median, p99, waiting, cpu, *own]


def thread_times() -> list[float]:
    """CPU seconds of the writer's thread and of the one that hashes."""
    clocks = {one.name: time.pthread_getcpuclockid(one.ident or 0) for one in threading.enumerate()}
    return [
        time.clock_gettime(clocks[name]) if name in clocks else 0.0 for name in ("mld-writer", "mld-hash")
    ]


class Training:
    """One case on one device."""

    def __init__(self, case: Case, device: str) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        self.model = case.make().to(device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-4)
        self.collate = Collate(case, 2 if case.workers else 8)
        self.seen = Seen()

    def loader(self, steps: int) -> Any:
        """A loader of so many batches."""
        more = (
            {"num_workers": self.case.workers, "multiprocessing_context": "fork"} if self.case.workers else {}
        )
        return DataLoader(range(steps * self.case.n), batch_size=self.case.n, collate_fn=self.collate, **more)

    def step(self, batch: Batch) -> None:
        """Forward, backward, update."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.case.bf16):
            loss = self.case.loss(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def walk(self, steps: int, recorder: Recorder | None) -> tuple[float, float]:
        """(wall, process CPU) of a step over one block; the first batches are left out: workers, watching."""
        loader, skip = self.loader(steps + 4), 4
        if recorder is not None:
            recorder.begin_pass("train", 0, mode="train", loader=loader)
        begun = cpu = 0.0
        threads = [0.0, 0.0]
        for index, batch in enumerate(loader):
            if index == skip:
                self.synchronise()
                gc.collect()
                begun, cpu, threads = time.perf_counter(), time.process_time(), thread_times()
            batch = moved(batch, self.device) if self.device != "cpu" else batch  # noqa: PLW2901
            if recorder is None:
                self.step(batch)
            else:
                self.recorded(recorder, batch, index, counts=index >= skip)
        self.synchronise()
        wall = time.perf_counter() - begun
        if recorder is not None:
            recorder.session.flush(120)
        cpu = time.process_time() - cpu
        if recorder is not None:
            spent = [(now - then) / steps for now, then in zip(thread_times(), threads, strict=True)]
            self.seen.threads.append(spent)
            recorder.end_pass()
            recorder.session.wait(0, 120)
        return wall / steps, cpu / steps

    def recorded(self, recorder: Recorder, batch: Batch, index: int, *, counts: bool) -> None:
        """A step with the recorder's events around it."""
        at, cpu = time.perf_counter(), time.thread_time()
        recorder.begin_batch(batch)
        wall, own = time.perf_counter() - at, time.thread_time() - cpu
        self.step(batch)
        at, cpu = time.perf_counter(), time.thread_time()
        recorder.record(batch, batch_idx=index, global_step=index)
        wall += time.perf_counter() - at
        own += time.thread_time() - cpu
        if counts:
            self.seen.inside.append(wall)
            self.seen.waiting.append(max(0.0, wall - own))

    def synchronise(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def run(self, pairs: int, seconds: float) -> Seen:
        """`pairs` of blocks of about so many seconds, without and with us in turn."""
        with recording(self.model, self.case) as recorder:
            begun = time.monotonic()
            self.walk(3, recorder)
            self.seen = Seen()
            steps = max(3, int(seconds / self.walk(3, None)[0]))
            for _ in range(pairs):
                if self.seen.bare and time.monotonic() - begun > _CASE_S:
                    break  # a slow machine gets fewer pairs
                bare, bare_cpu = self.walk(steps, None)
                traced, traced_cpu = self.walk(steps, recorder)
                self.seen.bare.append(bare)
                self.seen.traced.append(traced)
                self.seen.cpu.append(traced_cpu - bare_cpu)
        return self.seen


@contextlib.contextmanager
def recording(model: nn.Module, case: Case) -> Iterator[Recorder]:
    """A recorder driven as a wrapper drives it, into a temporary store."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(model_name="bench", version_name="v1", store=folder, **case.options)
        recorder.start(model, recorder.resolve_names(model), rank=0, world_size=1, framework="")
        yield recorder
        with contextlib.redirect_stdout(io.StringIO()):
            recorder.finish()


def _spin(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """A busy loop pinned to each core, as the loader's workers of a training machine are."""
    context = multiprocessing.get_context("spawn")
    spinning = [
        context.Process(target=_spin, args=(core,), daemon=True) for core in sorted(os.sched_getaffinity(0))
    ]
    for process in spinning:
        process.start()
    time.sleep(3.0)  # they import this file
    try:
        yield
    finally:
        for process in spinning:
            process.kill()


def blocked_share(batches: int) -> float:
    """Share of a fast loop without gradients that it waited for the writer."""
    case = CASES[0]
    model = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(12, CLASSES)).eval()
    batch = case.batch(64)
    with recording(model, case) as recorder, torch.no_grad():
        recorder.begin_pass("val", 0, mode="eval")
        begun = time.perf_counter()
        for index in range(batches):
            recorder.begin_batch(batch)
            model(batch["image"])
            recorder.record(batch, batch_idx=index)
        wall = time.perf_counter() - begun
        return recorder.session.account().blocked_seconds / wall


def table(device: str, only: list[str], *, pairs: int, seconds: float) -> list[list[str]]:
    """The rows of the cases."""
    rows = []
    for case in CASES:
        if only and not any(name in case.name for name in only):
            continue
        seen = Training(case, device).run(pairs, seconds)
        rows.append(seen.row(case))
        print("|", " | ".join(rows[-1]), "|", flush=True)
    return rows


def main() -> None:
    """Measure, print, write docs/performance.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one pair of short blocks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=[], help="rows whose name holds one of these")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs, seconds = (1, 0.3) if args.quick else (4, 2.5)
    with contextlib.redirect_stderr(io.StringIO()):
        rows = table(args.device, args.only, pairs=pairs, seconds=seconds)
        if args.device == "cpu" and not args.only:
            with busy_cores():
                busy = table("cpu", ["launch-bound"], pairs=pairs, seconds=seconds)
            rows += [[f"{name}, a busy loop on each core", *rest] for name, *rest in busy]
        share = blocked_share(200 if args.quick else 2000)
    text = markdown(HEAD, rows)
    text += f"\n\nA loop without gradients over 2,000 batches waited for the writer {100 * share:.1f} % of its time."
    text += (
        "\n\nTargets: launch-bound 1.01, with busy cores 1.02; inside our calls 0.08 ms (median) and 0.3 ms (p99); 0.6 ms "
        f"of CPU a batch of 64; 1 % waiting. Load average at the end: {os.getloadavg()[0]:.1f}."
    )
    print(text)
    if args.write:
        command = "Command: `python tests/benchmarks/bench_steps.py --write`; one thread, content hash and ids on.\n\n"
        write_section("performance.md", "steps", command + text)


if __name__ == "__main__":
    main()
