"""What an evaluation of a detector costs: `python tests/benchmarks/bench_boxes.py [--boxes 100000 1000000] [--write]`.

Every size and engine runs in a process of its own on a store of the simulated detector: about 7.5 recorded boxes and 4.8
truths a frame, 6 classes, logits and 16 features, 5 % of the labels with a planted fault. Wall time, the process's CPU
time over all threads and its peak memory are those of `Evaluator.request_evaluation` with its defaults; the store is
written before. With `--write` the table goes to docs/scale.md.
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

from _table import markdown, peak_bytes, write_section

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "tests" / "parts" / "data")]

FAULTS = {"missing": 0.05, "shifted": 0.04, "swapped": 0.05, "spurious": 0.03}
BOXES = 7.47
"""Recorded boxes of a frame, on average."""


def generate(folder: Path, boxes: int) -> int:
    """A store of one validation pass; how many boxes it holds."""
    import simulated_detector as simulation

    from mld_core.records.format.layout import RunKey, Store

    store, run = Store(folder), RunKey("det", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": 6, "class_names": list("abcdef")})
    scene = simulation.simulate(round(boxes / BOXES), seed=4, faults=FAULTS)
    simulation.write(store, run, "val", scene, n_epoch=0, world_size=8)
    return len(scene.frame)


def measure(folder: Path, engine: str) -> dict[str, float]:
    """One evaluation in this process."""
    from mld_core.evaluation.evaluator import Evaluator

    start = time.perf_counter()
    Evaluator("det", "v1", store=folder).request_evaluation(
        f"{engine} {time.time():.0f}", options={"engine": engine}
    )
    return {
        "wall": time.perf_counter() - start,
        "cpu": time.process_time(),
        "peak": peak_bytes() / 1e9,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, nargs="*", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--engines", nargs="*", default=["memory", "rounds"], choices=["memory", "rounds"])
    parser.add_argument("--write", action="store_true", help="write the table to docs/scale.md")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(Path(chosen.one[0]), chosen.one[1])))
        return
    rows = []
    for boxes in chosen.boxes:
        with tempfile.TemporaryDirectory(prefix="mld-boxes-") as folder:
            held = generate(Path(folder), boxes)
            for engine in chosen.engines:
                command = [sys.executable, __file__, "--one", folder, engine]
                told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                one = json.loads(told.splitlines()[-1])
                rows.append(
                    [f"{held:,}", engine, f"{one['cpu']:.0f}", f"{one['wall']:.0f}", f"{one['peak']:.2f}", f"{one['load']:.1f}"]
                )  # fmt: skip
                print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    body = (
        f"The simulated detector, one pass, defaults, {os.cpu_count()} cores under other work (`load`): "
        "`python tests/benchmarks/bench_boxes.py --write`.\n\n"
        + markdown(["boxes", "engine", "CPU s", "wall s", "peak GB", "load"], rows)
    )
    print(body)
    if chosen.write:
        write_section("scale.md", "boxes", body)


if __name__ == "__main__":
    main()
