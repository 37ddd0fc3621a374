"""Evaluation time and memory of the COCO metrics: ours, faster-coco-eval, pycocotools.

    python tests/benchmarks/bench_coco.py [--images 5000] [--detections 100] [--classes 80] [--repeat 3]

Timed is the evaluation of boxes that are in memory in each library's own form (COCO objects with their index
for the others): matching and accumulation, not reading or indexing annotations. Each library runs in a process
of its own on one thread; memory is the growth of the peak resident set during the evaluation.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "parts" / "data"))

from detection_sets import as_coco, make_set

from mld_core.evaluation.metrics.coco import CocoState, coco_metrics, match_coco

CHUNK = 500
LIBRARIES = ("ml_debugger", "faster-coco-eval", "pycocotools")


def ours(predictions: Any, truths: Any, images: int, classes: int) -> dict[str, float | None]:
    """All frames, 500 at a time."""
    states = []
    for start in range(0, images, CHUNK):
        edges = (start, start + CHUNK)
        p = slice(*np.searchsorted(predictions.frame, edges).tolist())
        t = slice(*np.searchsorted(truths.frame, edges).tolist())
        states.append(match_coco(predictions.take(p), truths.take(t), classes))
    return coco_metrics(CocoState.merge(states)).summary()


def others(name: str, dataset: dict[str, Any], results: Any) -> Any:
    """The evaluator of a library, ready to run."""
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        return COCOeval(truth, truth.loadRes(results), "bbox")


def measure(name: str, arguments: argparse.Namespace, answer: Any) -> None:
    """Run one library and send its figures."""
    images, classes = arguments.images, arguments.classes
    sizes = {"truths": 7, "detections": arguments.detections, "n_class": classes, "empty": 0.01}
    predictions, truths = make_set(images, seed=0, **sizes)
    dataset, results = as_coco(predictions, truths, images, classes) if name != "ml_debugger" else ({}, None)
    times, found = [], {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(arguments.repeat if name != "pycocotools" else 1):
        evaluator = others(name, dataset, results) if name != "ml_debugger" else None
        before = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) if not times else before
        start = time.perf_counter()
        if evaluator is None:
            found = ours(predictions, truths, images, classes)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                evaluator.evaluate()
                evaluator.accumulate()
        times.append(time.perf_counter() - start)
        if evaluator is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                evaluator.summarize()
            stats = list(evaluator.stats_as_dict.values()) if name != "pycocotools" else evaluator.stats
            found = dict(zip(("map", "map_50", "map_75"), map(float, stats[:3]), strict=True))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answer.send({"seconds": min(times), "mib": grown / 1024, "map": found["map"], "boxes": len(predictions)})


def main() -> None:
    """Measure all and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=LIBRARIES)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = {}
    for name in LIBRARIES if arguments.only is None else (arguments.only,):
        here, there = context.Pipe()
        process = context.Process(target=measure, args=(name, arguments, there))
        process.start()
        rows[name] = here.recv()
        process.join()
    base = rows.get("ml_debugger", {}).get("seconds")
    print(
        f"{arguments.images} images, {next(iter(rows.values()))['boxes']} predicted boxes, "
        f"{arguments.classes} classes, one thread\n"
    )
    print("| library | seconds | of ours | peak memory grown, MiB | mAP |\n|---|---|---|---|---|")
    for name, row in rows.items():
        ratio = f"{row['seconds'] / base:.1f}x" if base else ""
        print(f"| {name} | {row['seconds']:.2f} | {ratio} | {row['mib']:.0f} | {row['map']:.6f} |")
    print(json.dumps(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
