"""What evaluation as it happens costs: the process beside a training, and the training's steps meanwhile.

    python tests/benchmarks/bench_live.py [--rows N] [--seconds S] [--analyses N] [--blocks N] [--only-steps] [--one-core]

A pass of N rows (default 100,000) x 512 features x 100 classes is handed to the process, as a recorder does at a seal.
Told are the seconds to its metrics and to its analysis, the process's CPU seconds and its peak of memory. Steps of
a small network on one thread are timed while the process works and while it is stopped, in turn: a block beside it is
compared with the mean of the blocks alone before and after it, so that a machine that gets slower or faster makes no
difference; told is the median of these ratios, and its 95 % interval by bootstrap: of the time that passes, and of the
CPU time of the training's thread, which on a machine that others use tells what is left of it (caches, memory). With
`--one-core` both have to share a core.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "parts" / "data"))
from store_factory import Data, StoreFactory

from mld_core.evaluation.live.figures import METRICS, read_figures
from mld_core.evaluation.live.helper import LiveHelper, LiveSettings

FEATURES, CLASSES = 512, 100


def make_pass(folder: Path, rows: int) -> Path:
    """A sealed pass of a model that is right in most of its rows; its rank's folder."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, rows)
    centres = rng.normal(size=(CLASSES, FEATURES)).astype(np.float32)
    features = centres[labels] + 2 * rng.standard_normal((rows, FEATURES), np.float32)
    logits = rng.standard_normal((rows, CLASSES), np.float32)
    logits[np.arange(rows), labels] += 3
    names = [f"{number:08d}" for number in range(rows)]
    factory = StoreFactory(folder)
    data = Data(logits, labels, names, [f"{number:032x}" for number in range(rows)], {}, features=features)
    factory.add_pass(factory.run(n_class=CLASSES), "val", data, batch=5000)
    return next(folder.rglob("seal.json")).parent


def helper_of(folder: Path) -> LiveHelper:
    """The training's end of a process that is not running yet."""
    return LiveHelper(LiveSettings(str(folder), "net", "v1"))


def waited(rank: Path) -> dict[str, object]:
    """The pass's row once it is complete."""
    while (row := read_figures(rank.parent)) is None or row["state"] == METRICS:
        time.sleep(0.02)
    return row


def cost(folder: Path, rank: Path) -> str:
    """One pass from its seal to its last figure."""
    helper, begun = helper_of(folder), time.monotonic()
    helper.sealed(rank)
    helper.finish()
    while read_figures(rank.parent) is None:
        time.sleep(0.01)
    metrics = time.monotonic() - begun
    row = waited(rank)
    whole = time.monotonic() - begun
    os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        f"{row['rows']} rows: metrics after {metrics:.1f} s, all after {whole:.1f} s, {row['state']} {row['notes']}; "
        f"{used.ru_utime + used.ru_stime:.1f} CPU s, peak {used.ru_maxrss / 1024:.0f} MB"
    )


def steps_in(seconds: float, model: nn.Module, optimizer: torch.optim.Optimizer) -> np.ndarray:
    """Mean seconds of a training step, and CPU seconds."""
    x, y = torch.randn(64, 256), torch.randint(0, 10, (64,))
    begun, count = np.array([time.perf_counter(), time.thread_time()]), 0
    while time.perf_counter() - begun[0] < seconds:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        count += 1
    return (np.array([time.perf_counter(), time.thread_time()]) - begun) / count


def ratio(folder: Path, rank: Path, seconds: float, analyses: int, blocks: int) -> str:
    """Steps while the process works over steps while it is stopped, block by block of the same analyses."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    steps_in(1.0, model, optimizer)
    found: list[np.ndarray] = []
    for _ in range(analyses):
        (rank.parent / "figures.json").unlink(missing_ok=True)
        helper = helper_of(folder)
        alone = steps_in(seconds, model, optimizer)
        helper.sealed(rank)
        assert helper._process is not None
        process = helper._process.process
        for _ in range(blocks):
            row = read_figures(rank.parent)
            if row is not None and row["state"] != METRICS:
                break
            beside = steps_in(seconds, model, optimizer)
            process.send_signal(signal.SIGSTOP)
            before, alone = alone, steps_in(seconds, model, optimizer)
            process.send_signal(signal.SIGCONT)
            found.append(2 * beside / (before + alone))
        process.kill()
        process.wait()
    return "\n".join(
        f"steps beside it / alone, {what}: {told([one[place] for one in found])} of blocks of {seconds:g} s"
        for place, what in enumerate(("time", "CPU time"))
    )


def told(found: list[float]) -> str:
    """A median, how sure it is, and the quartiles."""
    medians = np.median(np.random.default_rng(0).choice(found, (2000, len(found))), axis=1)
    low, first, third, high = (
        *(np.quantile(medians, 0.025), np.quantile(found, 0.25)),
        *(np.quantile(found, 0.75), np.quantile(medians, 0.975)),
    )
    return (
        f"{np.median(found):.3f}, 95 % interval {low:.3f} to {high:.3f}, quartiles {first:.3f} and {third:.3f}, "
        f"{len(found)}"
    )


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=0.25, help="of a block of steps")
    parser.add_argument("--analyses", type=int, default=2, help="during which steps are timed")
    parser.add_argument("--blocks", type=int, default=200, help="of steps during an analysis, at most")
    parser.add_argument("--only-steps", action="store_true", help="not the process itself")
    parser.add_argument("--one-core", action="store_true", help="for both of them")
    given = parser.parse_args()
    if given.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        rank = make_pass(folder, given.rows)
        if not given.only_steps:
            print(cost(folder, rank))
        print(ratio(folder, rank, given.seconds, given.analyses, given.blocks))


if __name__ == "__main__":
    main()
