"""What recording a 3D detector costs: a real PointPillars and CenterPoint of MMDetection3D against a bare forward.

    .venv-mmdet3d/bin/python tests/benchmarks/bench_adapters3d.py [--frames 2] [--rounds 12] [--threads 1] [--write]

Random weights, real sweeps (`MLD_TEST_DATA`), coarse pillars (128 x 128). CPU time per frame, medians. `thread`:
spent on the caller's thread in hooks, arming and handing over; `parse`: reading the call, on its own (it runs on
the writer thread); `writer`: the writer thread, all of it (parse, hash, files). With `--write` the table goes to
docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))
sys.path.insert(0, str(Path(__file__).parents[1] / "parts" / "trainings"))

import mmdet3d_parts as parts
import numpy as np
import torch
from _table import markdown, write_section
from mmdet3d.registry import MODELS
from mmengine.registry import init_default_scope

from ml_debugger.training import ObjectDetection3DTracer
from mld_core.adapters.base import Thresholds
from mld_core.adapters.detection3d.families import Detector3D
from mld_core.tracing.capture.detectors import CallProbe, DetectorCapture, RootProbe
from mld_core.tracing.tracers.detection3d import ObjectDetection3DTrainingTorchTracer


def models() -> dict[str, tuple[Any, str]]:
    """Name -> (model, whose sweep it gets)."""
    init_default_scope("mmdet3d")
    torch.manual_seed(0)
    pillars = parts.pointpillars().model
    pillars.test_cfg.update(score_thr=0.0, max_num=50)  # the shipped number, all of them found
    center = parts.centerpoint().model
    return {
        "PointPillars": (MODELS.build(pillars).eval(), "kitti"),
        "CenterPoint": (MODELS.build(center).eval(), "nuscenes"),
    }


def sweep(name: str) -> torch.Tensor:
    frame = parts.frame_of(name)
    cloud = np.fromfile(frame["folder"] / frame["points"], np.float32)
    return torch.from_numpy(cloud.reshape(-1, len(frame["point_columns"])))


class Clock:
    """CPU time of the calling thread in what the tracer adds to a call: hooks, arming, handing over."""

    spent = 0.0

    @classmethod
    def watch(cls, owner: type[Any], name: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                cls.spent += time.thread_time() - begun

        setattr(owner, name, timed)


def seconds(work: Any) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def measure(name: str, model: Any, clouds: list[torch.Tensor], rounds: int) -> list[object]:
    """One row of the table, milliseconds per frame."""
    tracer = ObjectDetection3DTracer(model, name, "v1", force_table_recreate=True)
    adapter = tracer.adapter
    assert isinstance(adapter, Detector3D)
    args, kwargs = adapter.arguments(clouds, {})
    bare: list[float] = []
    added: list[float] = []
    for turn in range(rounds + 1):
        bare.append(seconds(lambda: model(*args, **adapter.arguments(clouds, {})[1])))
        Clock.spent = 0.0
        tracer(clouds, None, [f"{turn}-{i}" for i in range(len(clouds))], "val", 0)
        added.append(Clock.spent)
    tracer.wait_for_save(0)
    account = tracer.recorder.session.account()
    found = account.rows_written

    capture = DetectorCapture(adapter)
    capture.begin()
    model(*args, **kwargs)
    held = capture.take()
    assert held is not None
    limits = Thresholds(0.0, None, 500)
    parse = statistics.median(seconds(lambda: adapter.parse(held.call, limits)) for _ in range(rounds))
    parsed = adapter.parse(held.call, limits)
    assert parsed is not None
    capture.close()
    scale = 1000 / len(clouds)
    forward, own = statistics.median(bare[1:]) * scale, statistics.median(added[1:]) * scale
    boxes = sum(map(len, parsed.output.boxes)) / len(clouds)
    writer = account.thread_cpu_seconds / max(found, 1) * 1000
    return [
        name, f"{boxes:.0f}", f"{forward:.0f}", f"{own:.2f}", f"{parse * scale:.1f}",
        f"{writer:.1f}", f"{100 * own / forward:.1f} %",
        f"{100 * (own + writer) / forward:.1f} %",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the table to docs/performance.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for owner, name in (
        (CallProbe, "after"), (RootProbe, "after"), (ObjectDetection3DTrainingTorchTracer, "_arm"),
        (ObjectDetection3DTrainingTorchTracer, "_parse_and_save_io_data"),
    ):  # fmt: skip
        Clock.watch(owner, name)
    with tempfile.TemporaryDirectory() as store, torch.no_grad():
        os.environ["MLD_HOME"] = store
        for name, (model, whose) in models().items():
            rows.append(measure(name, model, [sweep(whose)] * options.frames, options.rounds))
    header = ["model", "boxes", "forward, ms", "thread, ms", "parse, ms", "writer, ms", "added to the caller",
              "added in all"]  # fmt: skip
    body = (
        "## Recording 3D detectors\n\nCommand: `.venv-mmdet3d/bin/python tests/benchmarks/bench_adapters3d.py --write`; "
        f"real MMDetection3D models, random weights, real sweeps, coarse pillars, {options.threads} thread(s), CPU time "
        "a frame. Parsing and writing run on the writer thread.\n\n" + markdown(header, rows)
    )
    print(body)
    if options.write:
        write_section("performance.md", "adapters3d", body)


if __name__ == "__main__":
    main()
