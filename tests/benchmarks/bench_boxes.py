"""What an evaluation of a detector costs: `python tests/benchmarks/bench_boxes.py [--boxes 100000 1000000] [--write]`.

Every task, size and engine runs in a process of its own on a store of the simulated detector: about 7.5 recorded boxes
and 4.8 truths a frame, 6 classes, logits and 16 features, 5 % of the labels with a planted fault; of 3D (`--tasks
detection3d`) on one of simulated roads, about 36 recorded boxes a frame. Wall time, the process's CPU time over all
threads and its peak memory are those of `Evaluator.request_evaluation` with its defaults; the store is written before.
`--recall 300` also searches the neighbours of so many boxes in full and tells how many of them were found. What was
measured before into the same `--keep` stands in the table too. With `--write` the table goes to docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _table import markdown, peak_bytes, write_section

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), *(str(ROOT / "tests" / name) for name in ("parts", "parts/data"))]

FAULTS = {"missing": 0.05, "shifted": 0.04, "swapped": 0.05, "spurious": 0.03}
BOXES = 7.47
"""Recorded boxes of a frame, on average."""


def generate(folder: Path, boxes: int, task: str) -> None:
    """A store of one validation pass."""
    import ray_parts
    import simulated_detector as simulation

    from mld_core.records.format.layout import Store

    if task == "detection3d":
        ray_parts.detection3d(folder, boxes, 8)
        return
    store, run = Store(folder), ray_parts.RUN
    store.ensure_run(run, {"task": "detection", "n_class": 6, "class_names": list("abcdef")})
    scene = simulation.simulate(round(boxes / BOXES), seed=4, faults=FAULTS)
    simulation.write(store, run, "val", scene, n_epoch=0, world_size=8)


def measure(folder: Path, engine: str, asked: int) -> dict[str, float]:
    """One evaluation in this process."""
    from mld_core.evaluation.analysis import analysis
    from mld_core.evaluation.evaluator import Evaluator

    kept: list = []
    if asked:
        around = analysis.surroundings

        def seen(points, groups, known, workers, **how):
            found = around(points, groups, known, workers, **how)
            some = np.random.default_rng(0).choice(len(points), min(asked, len(points)), replace=False)
            kept.append((points, groups, known, some, found.around.index[some]))
            return found

        analysis.surroundings = seen
    start = time.perf_counter()
    result = Evaluator("net", "v1", store=folder).request_evaluation(
        f"{engine} {time.time():.0f}", options={"engine": engine}
    )
    made = {
        "wall": time.perf_counter() - start,
        "cpu": time.process_time(),
        "peak": peak_bytes() / 1e9,
        "load": os.getloadavg()[0],
    }
    row = result.metrics_summary(full=True).iloc[0]
    made |= {name: float(row[name]) for name in ("n_recorded", "error_proba_auroc", "error_proba_brier")}
    return made | ({"recall": recall(*kept[0])} if kept else {})


def recall(points, groups, known, some, found) -> float:
    """Share of the nearest of some boxes, searched in full, that were found."""
    there = []
    for row, own in zip(some, found, strict=True):
        squared = ((points[known] - points[row]) ** 2).sum(axis=1)
        squared[groups[known] == groups[row]] = np.inf
        there.append(np.isin(np.argpartition(squared, len(own))[: len(own)], own).mean())
    return float(np.mean(there))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, nargs="*", default=[100_000, 300_000, 1_000_000])
    parser.add_argument(
        "--tasks", nargs="*", default=["detection", "detection3d"], choices=["detection", "detection3d"]
    )
    parser.add_argument(
        "--recall", type=int, default=0, help="boxes of the evaluation in memory whose neighbours are checked"
    )
    parser.add_argument("--engines", nargs="*", default=["memory", "rounds"], choices=["memory", "rounds"])
    parser.add_argument("--keep", type=Path, help="a JSON file of rows, added to")
    parser.add_argument("--write", action="store_true", help="write the table to docs/scale.md")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(Path(chosen.one[0]), chosen.one[1], int(chosen.one[2]))))
        return
    rows = json.loads(chosen.keep.read_text()) if chosen.keep and chosen.keep.exists() else {}
    for task, boxes in ((task, boxes) for task in chosen.tasks for boxes in chosen.boxes):
        with tempfile.TemporaryDirectory(prefix="mld-boxes-") as folder:
            generate(Path(folder), boxes, task)
            for engine in chosen.engines:
                asked = chosen.recall if engine == "memory" else 0
                command = [sys.executable, __file__, "--one", folder, engine, str(asked)]
                told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                one = json.loads(told.splitlines()[-1])
                rows[f"{task} {boxes:012d} {engine}"] = cells = [
                    task,
                    f"{one['n_recorded']:,.0f}",
                    engine,
                    f"{one['error_proba_auroc']:.4f}",
                    f"{one['error_proba_brier']:.4f}",
                    f"{one['recall']:.3f}" if "recall" in one else "-",
                    f"{one['cpu']:.0f}",
                    f"{one['wall']:.0f}",
                    f"{one['peak']:.2f}",
                    f"{one['load']:.1f}",
                ]
                print(*cells, sep="  ", file=sys.stderr, flush=True)
                if chosen.keep:
                    chosen.keep.write_text(json.dumps(rows))
    body = (
        f"The simulated detector and simulated roads, one pass, defaults, {os.cpu_count()} cores; other work on the machine "
        "shows in `load`: `python tests/benchmarks/bench_boxes.py --recall 300 --write`.\n\n"
    )
    titles = [
        "task",
        "boxes",
        "engine",
        "error AUROC",
        "Brier",
        "recall of neighbours",
        "CPU s",
        "wall s",
        "peak GB",
        "load",
    ]
    body += markdown(titles, [rows[name] for name in sorted(rows)])
    print(body)
    if chosen.write:
        write_section("scale.md", "boxes", body)


if __name__ == "__main__":
    main()
