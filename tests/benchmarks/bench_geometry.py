"""Box kernels against every compiled peer that is installed, in one process: ratios of thread CPU time.

    python tests/benchmarks/bench_geometry.py [--quick] [--no-write]

Methods take turns, one call each per round; a figure is the median over the rounds. One thread. Boxes are float32,
rotated powerboxes float64 (it takes nothing else). Peers: torchvision, powerboxes (Rust), mmcv's compiled ops; those
that are missing are left out. The table goes to docs/performance.md, between the markers `geometry`.
"""

# ruff: noqa: E402 (the number of threads is read when numpy, torch and the peers are loaded)
from __future__ import annotations

import os

for _name in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
):
    os.environ[_name] = "1"

import argparse
import importlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # runs from a clone, also in a peer's environment

from _table import markdown, write_section

from mld_core.geometry import backend, iou, nms

Methods = dict[str, Callable[[], Any]]
SCENES = {"sparse": 1.0, "proposals": 0.1, "dense": 0.01}  # objects per box
SLOWEST = 8.0  # seconds: a method that needs more per call is left out of the larger scenes


def module(name: str) -> ModuleType | None:
    """A peer, or None where it is missing or broken."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, AttributeError):
        return None


TORCHVISION, POWERBOXES, MMCV = module("torchvision.ops"), module("powerboxes"), module("mmcv.ops")


def image_boxes(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    """(n, 4) xyxy in a 1333 x 800 image, n * share objects; small ones where each box is an object of its own."""
    objects = max(1, int(n * share))
    own = rng.permutation(n) % objects
    size = rng.uniform(20, 40 if share == 1 else 200, (objects, 2))[own] * np.exp(rng.normal(0, 0.1, (n, 2)))
    centers = rng.uniform(0, (1333, 800), (objects, 2))[own] + rng.normal(0, 5, (n, 2))
    return np.concatenate([centers - size / 2, centers + size / 2], 1).astype(np.float32)


def cars(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    """(n, 5) [cx, cy, w, l, yaw] in 150 m x 150 m, n * share objects."""
    objects = max(1, int(n * share))
    own = rng.permutation(n) % objects
    centers = rng.uniform(-75, 75, (objects, 2))[own] + rng.normal(0, 0.3, (n, 2))
    size = np.array([1.9, 4.5]) * np.exp(rng.normal(0, 0.1, (n, 2)))
    yaw = rng.uniform(-np.pi, np.pi, objects)[own] + rng.normal(0, 0.1, n)
    return np.column_stack([centers, size, yaw]).astype(np.float32)


def in_degrees(boxes: np.ndarray) -> np.ndarray:
    """Rows [cx, cy, l, w, degrees], as powerboxes has them."""
    rows = np.column_stack([boxes[:, [0, 1, 3, 2]], np.degrees(boxes[:, 4])])
    return np.ascontiguousarray(rows, np.float64)


def own_engines(function: Callable[..., Any], *arrays: np.ndarray, **options: Any) -> Methods:
    """Our engines on the same arguments."""
    methods: Methods = {"numpy": lambda: function(*arrays, backend="numpy", **options)}
    if backend.numba_installed():
        methods["numba"] = lambda: function(*arrays, backend="numba", **options)
    return methods


def box_iou_methods(rng: np.random.Generator, n: int, share: float) -> Methods:
    """Axis-aligned IoU, n x n."""
    boxes = image_boxes(rng, n, share)
    tensor = torch.from_numpy(boxes)
    methods = own_engines(iou.box_iou, boxes, boxes)
    if TORCHVISION:
        methods["torchvision"] = lambda: TORCHVISION.box_iou(tensor, tensor)
    if POWERBOXES:
        methods["powerboxes"] = lambda: POWERBOXES.iou_distance(boxes, boxes)
    return methods


def bev_iou_methods(rng: np.random.Generator, n: int, share: float) -> Methods:
    """Rotated IoU, n x n."""
    boxes = cars(rng, n, share)
    tensor = torch.from_numpy(boxes[:, [0, 1, 3, 2, 4]].copy())
    degrees = in_degrees(boxes)
    methods = own_engines(iou.bev_iou, boxes, boxes)
    if POWERBOXES:
        methods["powerboxes"] = lambda: POWERBOXES.rotated_iou_distance(degrees, degrees)
    if MMCV and n <= 1000:  # 60 s a call at 5,000
        methods["mmcv"] = lambda: MMCV.box_iou_rotated(tensor, tensor)
    return methods


def nms_methods(rng: np.random.Generator, n: int, share: float) -> Methods:
    """Axis-aligned NMS of n boxes, IoU 0.5."""
    boxes, scores = image_boxes(rng, n, share), (rng.permutation(n) / n).astype(np.float32)
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores)
    wide = scores.astype(np.float64)
    methods = own_engines(nms.nms, boxes, scores)
    if TORCHVISION:
        methods["torchvision"] = lambda: TORCHVISION.nms(*tensors, 0.5)
    if POWERBOXES:
        methods["powerboxes"] = lambda: POWERBOXES.nms(boxes, wide, 0.5, 0.0)
    return methods


def nms_bev_methods(rng: np.random.Generator, n: int, share: float) -> Methods:
    """Rotated NMS of n boxes, IoU 0.5."""
    boxes, scores = cars(rng, n, share), (rng.permutation(n) / n).astype(np.float32)
    tensors = torch.from_numpy(boxes[:, [0, 1, 3, 2, 4]].copy()), torch.from_numpy(scores)
    degrees = in_degrees(boxes)
    wide = scores.astype(np.float64)
    methods = own_engines(nms.nms_bev, boxes, scores)
    if POWERBOXES:
        methods["powerboxes"] = lambda: POWERBOXES.rtree_rotated_nms(degrees, wide, 0.5, 0.0)
    if MMCV:
        methods["mmcv"] = lambda: MMCV.nms_rotated(*tensors, 0.5)
    return methods


KERNELS = {
    "axis-aligned IoU": box_iou_methods,
    "rotated IoU": bev_iou_methods,
    "NMS": nms_methods,
    "rotated NMS": nms_bev_methods,
}


def cpu_times(methods: Methods, seconds: float) -> dict[str, float]:
    """Median thread CPU time of each method, in ms; methods take turns."""
    once = {}
    for name, method in methods.items():
        start = time.thread_time()
        try:
            method()
        except BaseException as error:  # a Rust panic is no Exception
            if type(error).__name__ != "PanicException":
                raise
            print(f"{name} panicked: {error}", flush=True)
            continue
        once[name] = time.thread_time() - start
    methods = {name: method for name, method in methods.items() if once.get(name, SLOWEST) < SLOWEST}
    rounds = int(min(101, max(5, seconds / max(sum(once.values()), 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            start = time.thread_time()
            result = method()
            times[name].append(time.thread_time() - start)
            del result
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


LEGEND = (
    "All scenes; ms per call, and our time over that of the fastest peer (below 1: we are faster). -: not there, takes "
    "minutes (mmcv), or panics (powerboxes' rtree_rotated_nms on some dense scenes):"
)

# kernel, scene, ours, peer, what the ratio is called, bound, whether the bound is a least value
TARGETS = (
    ("rotated IoU", "proposals", "numpy", "powerboxes", "time, at most", 1.6, False),
    ("rotated IoU", "proposals", "numba", "powerboxes", "time, at most", 0.5, False),
    ("rotated IoU", "proposals", "numpy", "mmcv", "faster, at least", 100, True),
    ("rotated IoU", "proposals", "numba", "mmcv", "faster, at least", 400, True),
    ("axis-aligned IoU", "proposals", "numpy", "torchvision", "faster, at least", 4, True),
    ("axis-aligned IoU", "proposals", "numba", "torchvision", "faster, at least", 20, True),
    ("NMS", "proposals", "numba", "torchvision", "time, at most", 0.65, False),
    ("NMS", "proposals", "numpy", "torchvision", "time, at most", 3, False),
    ("NMS", "sparse", "numpy", "torchvision", "time, at most", 5, False),
    ("rotated NMS", "proposals", "numpy", "mmcv", "faster, at least", 5, True),
    ("rotated NMS", "proposals", "numba", "mmcv", "faster, at least", 100, True),
)


def target_rows(found: dict[tuple[str, str, int], dict[str, float]]) -> list[list[str]]:
    """What the targets say about n = 1,000, and what was measured."""
    rows = []
    for kernel, scene, mine, peer, kind, bound, least in TARGETS:
        times = found.get((kernel, scene, 1000), {})
        what = [kernel, scene, mine, peer, f"{kind} {bound}x"]
        if mine not in times or peer not in times:
            rows.append([*what, "-", "not measured: a peer is missing"])
            continue
        ratio = times[peer] / times[mine] if least else times[mine] / times[peer]
        met = ratio >= bound if least else ratio <= bound
        rows.append([*what, f"{ratio:.3g}x", "met" if met else "**not met**"])
    return rows


def gpu_section(rng: np.random.Generator) -> str:
    """The torch engine on a CUDA device against the peers' CUDA ops; wall time with synchronisation, medians."""
    if not torch.cuda.is_available():
        return "GPU: no CUDA device on this machine, nothing measured."
    rows = []
    for n in (1000, 5000, 20000):
        flat = torch.from_numpy(image_boxes(rng, n, 0.1)).cuda()
        turned = torch.from_numpy(cars(rng, n, 0.1)).cuda()
        theirs = turned[:, [0, 1, 3, 2, 4]].contiguous()
        scores = torch.rand(n, device="cuda")
        cases: dict[str, Methods] = {
            "axis-aligned IoU": {"ours": lambda b=flat: iou.box_iou(b, b)},
            "rotated IoU": {"ours": lambda b=turned: iou.bev_iou(b, b)},
            "NMS": {"ours": lambda b=flat, s=scores: nms.nms(b, s)},
            "rotated NMS": {"ours": lambda b=turned, s=scores: nms.nms_bev(b, s)},
        }
        if TORCHVISION:
            cases["axis-aligned IoU"]["torchvision"] = lambda b=flat: TORCHVISION.box_iou(b, b)
            cases["NMS"]["torchvision"] = lambda b=flat, s=scores: TORCHVISION.nms(b, s, 0.5)
        if MMCV:
            cases["rotated IoU"]["mmcv"] = lambda b=theirs: MMCV.box_iou_rotated(b, b)
            cases["rotated NMS"]["mmcv"] = lambda b=theirs, s=scores: MMCV.nms_rotated(b, s, 0.5)
        for kernel, methods in cases.items():
            times = gpu_times(methods)
            rows.append(
                [
                    kernel,
                    n,
                    *(f"{times[p]:.3g}" if p in times else "-" for p in ("ours", "torchvision", "mmcv")),
                ]
            )
    name = torch.cuda.get_device_name()
    return f"GPU ({name}), proposals, ms wall:\n\n" + markdown(
        ["kernel", "n", "ours", "torchvision", "mmcv"], rows
    )


def gpu_times(methods: Methods, rounds: int = 21) -> dict[str, float]:
    """Median wall time in ms, the device synchronised before and after; a method without a CUDA op is left out."""
    times: dict[str, list[float]] = {}
    for name, method in methods.items():
        try:
            method()
        except (RuntimeError, NotImplementedError):
            continue
        times[name] = []
    for _ in range(rounds):
        for name, values in times.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            methods[name]()
            torch.cuda.synchronize()
            values.append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="n = 100 and 1,000 and fewer rounds")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument(
        "--axis-only", action="store_true", help="print how much faster than torchvision, and stop"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    backend.warm_up()
    rng = np.random.default_rng(0)
    peers = ("torchvision", "powerboxes", "mmcv")
    if options.axis_only:
        times = cpu_times(box_iou_methods(rng, 1000, SCENES["proposals"]), 3.0)
        print(
            *(
                f"{name} {times['torchvision'] / times[name]:.1f}x"
                for name in ("numpy", "numba")
                if name in times
            )
        )
        return
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    rows = []
    for kernel, make in KERNELS.items():
        for scene, share in SCENES.items():
            for n in (100, 1000) if options.quick else (100, 300, 1000, 5000):
                times = cpu_times(make(rng, n, share), 1.0 if options.quick else 2.0)
                found[kernel, scene, n] = times
                cells = [
                    f"{times[name]:.3g}" if name in times else "-" for name in ("numpy", "numba", *peers)
                ]
                best = min((times[p] for p in peers if p in times), default=float("nan"))
                ratios = [
                    f"{times[mine] / best:.2f}" if mine in times else "-" for mine in ("numpy", "numba")
                ]
                rows.append([kernel, scene, n, *cells, *ratios])
                print(*rows[-1], sep="\t", flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", *peers_here()))
    head = [
        "kernel",
        "scene",
        "n",
        "numpy ms",
        "numba ms",
        *(f"{p} ms" for p in peers),
        "numpy / best peer",
        "numba / best peer",
    ]
    targets = markdown(
        ["kernel", "scene", "ours", "peer", "target (n = 1,000)", "measured", ""], target_rows(found)
    )
    body = "\n\n".join(
        [
            "## Box kernels",
            (
                "`python tests/benchmarks/bench_geometry.py`: thread CPU time, one thread, methods in turn, medians, "
                f"float32 boxes (rotated powerboxes: float64). {versions}."
            ),
            targets,
            *page_faults(),
            LEGEND,
            markdown(head, rows),
            gpu_section(rng),
        ]
    )
    print("\n" + targets)
    if not options.no_write:
        write_section("performance.md", "geometry", body)


def page_faults() -> list[str]:
    """The axis-aligned target in two more processes: fresh, and where malloc keeps what is freed (glibc)."""
    if not TORCHVISION:
        return []
    kept = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    command = [sys.executable, __file__, "--axis-only"]
    fresh, without = (
        subprocess.run(
            command, env={**os.environ, **more}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for more in ({}, kept)
    )
    text = (
        "Half or more of torchvision.ops.box_iou's time can be page faults of its large temporaries, depending on what "
        "malloc happens to keep, so the ratio of axis-aligned IoU differs from process to process. Faster than "
        f"torchvision, proposals, n = 1,000: in a fresh process {fresh}; with MALLOC_MMAP_THRESHOLD_ and "
        f"MALLOC_TRIM_THRESHOLD_ at 1 GiB (no page faults for anyone) {without}."
    )
    return [text]


def peers_here() -> list[str]:
    """Names of numba and of the peers that can be imported."""
    here = {
        "numba": backend.numba_installed(),
        "torchvision": TORCHVISION,
        "powerboxes": POWERBOXES,
        "mmcv": MMCV,
    }
    return [name for name, peer in here.items() if peer]


if __name__ == "__main__":
    main()
