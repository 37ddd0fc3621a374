"""What an evaluation on a Ray cluster costs beside one on threads: `python tests/benchmarks/bench_ray.py [--write]`.

    [--units 100000 300000] [--tasks classification detection detection3d]

The cluster is two nodes of one CPU each on this machine; in every round the worker that walks over the part in the middle
is killed once. Units are samples of 16 features and 10 classes, recorded boxes of the simulated detector, or recorded 3D
boxes of simulated roads, in parts of 25,000. Every evaluation has a process of its own; that both give the same result
is checked (`ray_parts.same`). With `--write` the tables go to docs/scale.md.
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
from typing import Any

from _table import markdown, write_section

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), *(str(ROOT / "tests" / name) for name in ("parts", "parts/data"))]
# Processes of the cluster find the helper modules as this one does.
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)

PART = 25_000
MIB = 2**20


def on_threads(folder: Path) -> dict[str, Any]:
    """One evaluation on the threads of this process."""
    import ray_parts

    start = time.perf_counter()
    ray_parts.evaluated(folder / "store", "rounds", engine="rounds", threads=2, repeats=3)
    return {"wall": time.perf_counter() - start, "cpu": time.process_time()}


def on_ray(folder: Path, parts: int) -> dict[str, Any]:
    """One evaluation on a cluster of two nodes; CPU seconds are the driver's and those of the parts' walks."""
    import ray_parts

    killed = folder / "killed"
    killed.mkdir()
    with ray_parts.cluster():
        start, begun = time.perf_counter(), time.process_time()
        with ray_parts.told_costs() as costs, ray_parts.killed_workers(killed, parts // 2):
            ray_parts.evaluated(folder / "store", "ray", engine="ray", repeats=3)
        wall, driver = time.perf_counter() - start, time.process_time() - begun
    return {
        "wall": wall,
        "driver_cpu": driver,
        "cpu": driver + sum(one.cpu_seconds for one in costs),
        "worker": max(one.peak_bytes for one in costs) / MIB,
        "killed": len(list(killed.iterdir())),
        "rounds": [vars(one) for one in costs],
    }


def measure(folder: Path, engine: str, parts: int) -> dict[str, Any]:
    """One evaluation, and how busy the machine was at its end."""
    told = on_threads(folder) if engine == "rounds" else on_ray(folder, parts)
    return {**told, "load": os.getloadavg()[0]}


def measured(task: str, units: int) -> dict[str, dict[str, Any]]:
    """Both evaluations of a task and size, once they are found the same."""
    import ray_parts

    from mld_core.evaluation.evaluator import Evaluator

    parts, told = max(2, round(units / PART)), {}
    with tempfile.TemporaryDirectory(prefix="mld-ray-") as made:
        folder = Path(made)
        ray_parts.MADE[task](folder / "store", units, parts)
        for engine in ("rounds", "ray"):
            command = [sys.executable, __file__, "--one", made, engine, str(parts)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            told[engine] = json.loads(out.splitlines()[-1])
            print(task, units, engine, json.dumps(told[engine]), file=sys.stderr, flush=True)
        of = Evaluator("net", "v1", store=folder / "store")
        ray_parts.same(*(of.get_result(engine) for engine in ("ray", "rounds")))
    return told


def tables(found: list[tuple[str, int, dict[str, dict[str, Any]]]]) -> str:
    """Costs of both engines, and the rounds of the largest size on the cluster."""
    rows, rounds = [], []
    for task, units, told in found:
        for engine, one in told.items():
            cluster = engine == "ray"
            row = [
                task,
                f"{units:,}",
                engine,
                f"{one['cpu']:.0f}",
                f"{one['driver_cpu']:.0f}" if cluster else "-",
            ]
            row += [f"{one['wall']:.0f}", f"{one['worker']:.0f}" if cluster else "-"]
            rows.append([*row, str(one["killed"]) if cluster else "-", f"{one['load']:.1f}"])
    for task in dict.fromkeys(task for task, _, _ in found):
        units, told = max((units, told["ray"]) for one, units, told in found if one == task)
        for one in told["rounds"]:
            row = [task, one["name"].split()[0], f"{one['cpu_seconds']:.1f}", f"{one['seconds']:.1f}"]
            row += [f"{one[name] / 1e6:.1f}" for name in ("read", "broadcast", "states", "written")]
            rounds.append([*row, f"{one['peak_bytes'] / MIB:.0f}"])
    head = [
        "task",
        "units",
        "engine",
        "CPU s",
        "of the driver",
        "wall s",
        "largest worker, MiB",
    ]
    last = ["task", "round", "CPU s", "wall s", "MB of parts", "MB broadcast", "MB of states", "MB of tables"]
    return (
        "Two nodes of one CPU each on one machine of 2 cores, three repeats, parts of 25,000, in every round one worker "
        "killed (`killed`); the results of both engines were found the same: `python tests/benchmarks/bench_ray.py "
        "--write`, under other work (`load`).\n\n"
        + markdown([*head, "killed", "load"], rows)
        + f"\n\nThe rounds of {max(units for _, units, _ in found):,} units on the cluster:\n\n"
        + markdown([*last, "largest worker, MiB"], rounds)
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, nargs="*", default=[100_000, 300_000])
    parser.add_argument("--tasks", nargs="*", default=["classification", "detection", "detection3d"])
    parser.add_argument("--write", action="store_true", help="write the tables to docs/scale.md")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        folder, engine, parts = chosen.one
        print(json.dumps(measure(Path(folder), engine, int(parts))))
        return
    found = [(task, units, measured(task, units)) for task in chosen.tasks for units in chosen.units]
    body = tables(found)
    print(body)
    if chosen.write:
        write_section("scale.md", "ray", body)


if __name__ == "__main__":
    main()
