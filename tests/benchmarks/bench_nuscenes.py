"""Time and memory of the nuScenes detection metrics: ours and nuscenes-devkit, whose figures must be equal.

    .venv-mmdet3d/bin/python tests/benchmarks/bench_nuscenes.py [--frames 6000] [--boxes 100] [--truths 30]

Timed is the evaluation of boxes that are in memory in each library's own form (its `EvalBoxes` for the devkit):
matching and accumulation of ten classes at four distances, not reading files or making objects. Each runs in a
process of its own on one thread; memory is the growth of the peak resident set during the evaluation, and the whole
process's peak beside it (the devkit keeps an object for each box).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "parts" / "data"))

from frames_3d import NUSCENES, make_frames

from mld_core.evaluation.metrics.nuscenes import (
    NuscenesProfile,
    NuscenesState,
    match_nuscenes,
    nuscenes_metrics,
)

CHUNK = 500


def ours(data, frames):
    """All frames, 500 at a time."""
    profile, states = NuscenesProfile.of(NUSCENES), []
    for start in range(0, frames, CHUNK):
        a = slice(*np.searchsorted(data.predictions.frame, (start, start + CHUNK)))
        b = slice(*np.searchsorted(data.truths.frame, (start, start + CHUNK)))
        found, true = data.predictions.take(a), data.truths.take(b)
        given = {"velocities": data.velocities[a], "true_velocities": data.true_velocities[b]}
        states.append(match_nuscenes(found, true, profile, n_points=data.n_points[b], **given))
    made = nuscenes_metrics(NuscenesState.merge(states), profile)
    return made.mean_ap, made.nds


def prepare_devkit(data, frames):
    from test_mmdet3d_nuscenes_metrics import as_devkit

    p, t = data.predictions, data.truths
    found = as_devkit(p.frame, p.label, p.box, data.velocities, frames, score=p.score)
    return found, as_devkit(t.frame, t.label, t.box, data.true_velocities, frames, n_points=data.n_points)


def devkit(found, true):
    from nuscenes.eval.common.utils import center_distance
    from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp

    errors = ("trans_err", "scale_err", "orient_err", "vel_err")
    aps, tps = [], {name: [] for name in errors}
    for name in NUSCENES:
        curves = {most: accumulate(true, found, name, center_distance, most) for most in (0.5, 1.0, 2.0, 4.0)}
        aps.append(np.mean([calc_ap(one, 0.1, 0.1) for one in curves.values()]))
        for error in errors:
            skipped = {"traffic_cone": {"vel_err", "orient_err"}, "barrier": {"vel_err"}}
            if error not in skipped.get(name, ()):
                tps[error].append(calc_tp(curves[2.0], 0.1, error))
    scores = [max(0.0, 1 - float(np.mean(values))) for values in tps.values()]
    mean_ap = float(np.mean(aps))
    return mean_ap, (5 * mean_ap + sum(scores)) / 9


def peak():
    """MiB of the largest resident set since the last `forget_peak`."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak():
    """Begin to measure the peak anew, so that making the data does not hide what the evaluation takes."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(name, arguments, answer):
    """Run one library and send its figures."""
    data = make_frames(arguments.frames, truths=arguments.truths, detections=arguments.boxes, empty=0.0)
    ready = prepare_devkit(data, arguments.frames) if name == "nuscenes-devkit" else None
    forget_peak()
    before, times = peak(), []
    for _ in range(1 if ready else arguments.repeat):
        start = time.perf_counter()
        found = devkit(*ready) if ready else ours(data, arguments.frames)
        times.append(time.perf_counter() - start)
    answer.send(
        {
            "seconds": min(times),
            "grown": peak() - before,
            "peak": peak(),
            "map": found[0],
            "nds": found[1],
            "boxes": len(data.predictions),
        }
    )


def main() -> None:
    """Measure both and print a Markdown table; exit status 1 where the figures differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--truths", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=("ml_debugger", "nuscenes-devkit"))
    arguments = parser.parse_args()
    context, rows = multiprocessing.get_context("spawn"), {}
    for name in (arguments.only,) if arguments.only else ("ml_debugger", "nuscenes-devkit"):
        here, there = context.Pipe()
        process = context.Process(target=measure, args=(name, arguments, there))
        process.start()
        rows[name] = here.recv()
        process.join()
    base = rows.get("ml_debugger", {}).get("seconds")
    print(f"{arguments.frames} frames, {next(iter(rows.values()))['boxes']} predicted boxes, one thread\n")
    print(
        "| library | seconds | of ours | memory grown, MiB | peak of the process, MiB | mAP | NDS without attributes |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        ratio = f"{row['seconds'] / base:.0f}x" if base else ""
        figures = f"{row['map']:.6f} | {row['nds']:.6f}"
        print(
            f"| {name} | {row['seconds']:.2f} | {ratio} | {row['grown']:.0f} | {row['peak']:.0f} | {figures} |"
        )
    print(json.dumps(rows), file=sys.stderr)
    values = [(row["map"], row["nds"]) for row in rows.values()]
    if not np.allclose(values, values[0], atol=1e-6):
        sys.exit("the figures differ")


if __name__ == "__main__":
    main()
