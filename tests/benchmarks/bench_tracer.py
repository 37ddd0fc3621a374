"""What recording costs: ratios measured in one process, against nobody and against named peers.

    make bench        # or: python tests/benchmarks/bench_tracer.py [--quick] [--no-peers]

Every step records 64 samples: id, label, 100 logits, 512 features, content hash of a 3 x 64 x 64 image. Times are CPU
time (`time.thread_time`, `time.process_time`), the order of the methods alternates, figures are medians: the ratios
hold on a busy machine, the absolute times less so.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _table import markdown, write_section
from torch import nn

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.schema import samples_schema, vectors_schema
from mld_core.records.format.vectors import from_numpy
from mld_core.records.write.writer import Writer, WriterOptions
from mld_core.tracing.run.recorder import Recorder

BATCH, CLASSES, FEATURES, IMAGE = 64, 100, 512, (3, 64, 64)


class GivenFeatures(nn.Module):
    """Hands out features that are there already, then makes logits: the cheapest step that has both."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.randn(BATCH, FEATURES)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 100) from features (B, 512); the images (B, 3, 64, 64) are what is hashed."""
        return self.fc(self.features[: len(images)])


def batches(count: int) -> list[dict[str, object]]:
    """`count` different real-sized image batches with ids and labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randn(BATCH, *IMAGE, generator=generator),
            "label": torch.randint(0, CLASSES, (BATCH,), generator=generator),
            "input_id": [f"sample-{i * BATCH + j}" for j in range(BATCH)],
        }
        for i in range(count)
    ]


@contextlib.contextmanager
def recording(model: nn.Module, **options: object) -> Iterator[Recorder]:
    """A recorder driven as a wrapper drives it, into a temporary store."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(model_name="bench", version_name="v1", store=folder, n_class=CLASSES, **options)
        recorder.start(model, recorder.resolve_names(model), rank=0, world_size=1, framework="")
        recorder.begin_pass("train", 0, mode="train")
        yield recorder
        with contextlib.redirect_stdout(io.StringIO()):
            recorder.end_pass()
            recorder.finish()


def traced_step(recorder: Recorder, model: nn.Module, batch: dict[str, object], index: int) -> None:
    """One forward with the recorder's events around it."""
    recorder.begin_batch(batch)
    model(batch["image"])
    recorder.record(batch, batch_idx=index, global_step=index)


def added_thread_time(model: nn.Module, steps: int, **options: object) -> tuple[float, float]:
    """Median added training-thread CPU per step and the bare step's, both in ms; bare and traced steps alternate."""
    data = batches(8)
    bare, traced = [], []
    with recording(model, **options) as recorder, torch.no_grad():
        for i in range(steps + 20):
            batch = data[i % len(data)]
            begun = time.thread_time()
            model(batch["image"])
            middle = time.thread_time()
            traced_step(recorder, model, batch, i)
            end = time.thread_time()
            if i >= 20:
                bare.append(middle - begun)
                traced.append(end - middle)
    base = statistics.median(bare)
    return (statistics.median(traced) - base) * 1e3, base * 1e3


def peer_steps(folder: Path) -> dict[str, Callable[[dict[str, list[object]]], None]]:
    """One step of each installed peer, recording the same rows by the peer's own table."""
    os.environ.update(
        WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(folder), TRACKIO_DIR=str(folder)
    )
    peers: dict[str, Callable[[dict[str, list[object]]], None]] = {}
    with contextlib.suppress(ImportError):
        import wandb

        run = wandb.init(project="bench", dir=str(folder))

        def log_wandb(rows: dict[str, list[object]]) -> None:
            run.log({"rows": wandb.Table(columns=list(rows), data=list(zip(*rows.values(), strict=True)))})

        peers["wandb offline, Table per step"] = log_wandb
    with contextlib.suppress(ImportError):
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("bench", f"file://{folder}/artifacts"))
        mlflow.start_run()
        counter = iter(range(10**9))
        peers["mlflow log_table, a file per step"] = lambda rows: mlflow.log_table(
            rows, f"rows-{next(counter)}.json"
        )
    with contextlib.suppress(ImportError):
        import pandas as pd
        import trackio

        trackio.init(project="bench", embed=False)
        peers["trackio Table per step"] = lambda rows: trackio.log(
            {"rows": trackio.Table(dataframe=pd.DataFrame(rows))}
        )
    return peers


def peer_times(steps: int) -> dict[str, float]:
    """Median training-thread CPU per step in ms, rows as python lists (the shape the peers' tables take)."""
    model, data = GivenFeatures(), batches(2)
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, log in peer_steps(Path(folder)).items():
            spent = []
            for i in range(steps + 2):
                batch = data[i % len(data)]
                logits = model(batch["image"])
                begun = time.thread_time()
                log(
                    {
                        "id": batch["input_id"],
                        "label": batch["label"].tolist(),
                        "logits": logits.tolist(),
                        "features": model.features.tolist(),
                    }
                )
                spent.append(time.thread_time() - begun)
            times[name] = statistics.median(spent[2:]) * 1e3
            if name.startswith("mlflow"):
                sys.modules["mlflow"].end_run()  # else it ends when the folder is gone
    return times


def made_tables(count: int) -> list[dict[str, pa.Table]]:
    """`count` batches as the recorder would hand them to the writer, made once."""
    generator = np.random.default_rng(0)
    samples = samples_schema("classification")
    vectors = vectors_schema("classification", CLASSES, {"features": (FEATURES, "float16")})
    tables = []
    for i in range(count):
        ids = pa.array([f"sample-{i * BATCH + j}" for j in range(BATCH)])
        unit = pa.array(np.arange(i * BATCH, (i + 1) * BATCH))
        rank = pa.array(np.zeros(BATCH, np.int32))
        known = {
            "unit": unit,
            "rank_": rank,
            "input_id": ids,
            "label": pa.array(generator.integers(0, CLASSES, BATCH)),
            "prediction": pa.array(generator.integers(0, CLASSES, BATCH)),
            "confidence": pa.array(generator.random(BATCH, np.float32)),
            "loss": pa.array(generator.random(BATCH, np.float32)),
            "logits": from_numpy(generator.normal(size=(BATCH, CLASSES)).astype(np.float32)),
            # Features behind a ReLU: half of them zero.
            "features": from_numpy(generator.normal(size=(BATCH, FEATURES)).clip(0).astype(np.float16)),
        }

        def table(schema: pa.Schema, known: dict[str, pa.Array] = known) -> pa.Table:
            columns = [known.get(f.name, pa.nulls(BATCH, f.type)) for f in schema]
            return pa.Table.from_arrays(columns, schema=schema)

        tables.append({"samples": table(samples), "vectors": table(vectors)})
    return tables


def writer_throughput(steps: int) -> tuple[float, float, float]:
    """Raw MB per CPU second: our writer thread, bare pyarrow on the same rows and codec, the SHA-256 alone.

    Ours also rolls parts, hashes every file, writes manifests and fsyncs; bare pyarrow writes one file a family.
    """
    tables = made_tables(steps)
    raw = sum(t.nbytes for batch in tables for t in batch.values()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(
            Store(folder), RunKey("bench", "v1"), attempt="a-000", options=WriterOptions(queue_mb=2048)
        )
        handle = writer.open(PassKey("train", 0), meta={})
        for batch in tables:
            nbytes = sum(t.nbytes for t in batch.values())
            writer.put(handle, lambda batch=batch: batch, rows=BATCH, nbytes=nbytes)
        writer.seal(handle)
        writer.close(600)
        ours = writer.account().thread_cpu_seconds
        begun = time.thread_time()
        for family, rows in (("samples", 65536), ("vectors", 8192)):
            vector = family == "vectors"
            whole = pa.concat_tables([batch[family] for batch in tables])
            pq.write_table(
                whole,
                Path(folder, f"{family}.parquet"),
                compression="zstd",
                compression_level=1,
                use_dictionary=False if vector else ["input_id", "id_source", "mode"],
                write_statistics=not vector,
                row_group_size=rows,
            )
        bare = time.thread_time() - begun
        files = [Path(folder, f"{family}.parquet").read_bytes() for family in ("samples", "vectors")]
        begun = time.thread_time()
        for data in files:
            hashlib.sha256(data).hexdigest()
        digest = time.thread_time() - begun
    return raw / ours, raw / bare, raw / (bare + digest)


def memory(steps: int) -> list[tuple[int, float, int]]:
    """(step, RSS in MB, live tensors) along `steps` traced steps."""
    model, data = GivenFeatures(), batches(8)
    process, seen = psutil.Process(), []
    with torch.no_grad(), recording(model) as recorder:
        for i in range(steps + 1):
            traced_step(recorder, model, data[i % 8], i)
            if i % (steps // 4) == 0 and i:
                recorder.session.flush(120)
                gc.collect()
                live = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
                seen.append((i, process.memory_info().rss / 1e6, live))
    return seen


def resnet_ratio(steps: int) -> tuple[float, float]:
    """Wall time of a ResNet-18 training step with the recorder over one without, and the added thread CPU in ms."""
    from torchvision.models import resnet18

    model, data = resnet18(num_classes=CLASSES), batches(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    bare, traced, added = [], [], []
    with recording(model) as recorder:
        for i in range(2 * steps):
            batch, with_us = data[i % 4], i % 2 == 1
            begun, inside = time.perf_counter(), 0.0
            if with_us:
                t = time.thread_time()
                recorder.begin_batch(batch)
                inside += time.thread_time() - t
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if with_us:
                t = time.thread_time()
                recorder.record(batch, batch_idx=i, global_step=i)
                inside += time.thread_time() - t
                added.append(inside)
            (traced if with_us else bare).append(time.perf_counter() - begun)
    ratios = [t / b for t, b in zip(traced[2:], bare[2:], strict=True)]
    return statistics.median(ratios), statistics.median(added[2:]) * 1e3


def verdict(value: float, target: float, *, at_most: bool) -> str:
    """ "met" or "missed"."""
    return "met" if (value <= target if at_most else value >= target) else "missed"


def main() -> None:
    """Measure everything, print it, write docs/performance.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps; nothing is written to the docs")
    parser.add_argument("--no-peers", action="store_true", help="without wandb, mlflow and trackio")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scale = 10 if args.quick else 1
    rows: list[list[object]] = []
    plain, base = added_thread_time(GivenFeatures(), 400 // scale, input_hash=False)
    hashed, _ = added_thread_time(GivenFeatures(), 400 // scale)
    rows.append(
        [
            "added training-thread CPU per step, ids on, hash off",
            f"{plain:.3f} ms",
            "<= 0.15 ms",
            verdict(plain, 0.15, at_most=True),
        ]
    )
    rows.append(["the same, hash on (computed on the writer thread)", f"{hashed:.3f} ms", "reported", ""])
    rows.append(["the bare step it is added to (one Linear)", f"{base:.3f} ms", "", ""])
    ratio, inside = resnet_ratio(40 // scale)
    rows.append(["ResNet-18 training step, wall time with / without us", f"{ratio:.3f}", "reported", ""])
    rows.append(
        [
            "training-thread CPU inside our calls on it",
            f"{inside:.3f} ms",
            "<= 0.15 ms",
            verdict(inside, 0.15, at_most=True),
        ]
    )
    pa.set_cpu_count(1)
    ours, bare, hashed_bare = max(
        (writer_throughput(1500 // scale) for _ in range(3)), key=lambda t: t[0] / t[1]
    )
    rows.append(
        [
            "writer thread, raw MB per CPU second (bare pyarrow; with SHA-256 too)",
            f"{ours:.0f} ({bare:.0f}; {hashed_bare:.0f}): {ours / bare:.2f} x",
            ">= 0.85 x",
            verdict(ours / bare, 0.85, at_most=False),
        ]
    )
    seen = memory(2000 // scale)
    grown = seen[-1][1] - seen[0][1]
    rows.append(
        [
            f"RSS from step {seen[0][0]} to {seen[-1][0]}",
            f"{seen[0][1]:.0f} -> {seen[-1][1]:.0f} MB ({grown:+.0f})",
            "flat",
            verdict(grown, 30, at_most=True),
        ]
    )
    rows.append(
        [
            f"live tensors at steps {', '.join(str(s[0]) for s in seen)}",
            ", ".join(str(s[2]) for s in seen),
            "flat",
            verdict(seen[-1][2] - seen[0][2], 0, at_most=True),
        ]
    )
    peers = {} if args.no_peers else peer_times(20 // min(scale, 4))
    for name, spent in peers.items():
        rows.append([f"{name}: training-thread CPU", f"{spent:.1f} ms", f"{spent / hashed:.0f} x ours", ""])
    if peers:
        least = min(peers.values()) / hashed
        rows.append(
            ["cheapest peer over ours", f"{least:.0f} x", ">= 100 x", verdict(least, 100, at_most=False)]
        )
    table = markdown(["what", "measured", "target", ""], rows)
    print(table)
    if not args.quick:
        command = "Command: `make bench`; one thread, batch 64 x 3 x 64 x 64, 512 features, 100 logits.\n\n"
        write_section("performance.md", "tracer", command + table)


if __name__ == "__main__":
    main()
