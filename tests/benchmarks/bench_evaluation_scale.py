"""How the analysis of one split grows: `python tests/benchmarks/bench_evaluation_scale.py [--sizes 100000 10000000x64 ...]`.

Every size runs in a process of its own on synthetic arrays of n x 512 (or as many as stand behind an x) features
(float16) and 100 classes, written to a folder first and streamed from there: wall time by stage, peak resident memory,
and what was found of the planted 5 %. What was measured before into the same `--folder` stands in the table too.
The pages of the logits' memory map count as resident. With `--write` the table goes to docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from _table import peak_bytes

WIDTH, CLASSES = 512, 100
BEGIN, END = "<!-- scale:begin -->", "<!-- scale:end -->"
ROWS = 32_768


class Stored:
    """(n, width) float16 vectors in a file, read in blocks: nothing stays in memory."""

    def __init__(self, file: Path, rows: int, width: int) -> None:
        self.file, self.shape = file, (rows, width)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        with self.file.open("rb") as stream:
            while len(piece := np.fromfile(stream, np.float16, rows * self.shape[1])):
                yield piece.reshape(-1, self.shape[1])


def generate(folder: Path, n: int, width: int) -> None:
    """Four clusters a class in 24 directions; 5 % of the units in clusters where the model is sure and wrong."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES * 4, 24)).astype(np.float32) * 1.5
    spread = (rng.normal(size=(24, width)) / 5).astype(np.float32)
    failing = rng.permutation(CLASSES * 4)[: CLASSES * 4 // 20]
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.int64, (n,))
    hit = np.lib.format.open_memmap(folder / "hit.npy", "w+", bool, (n,))
    logits = np.lib.format.open_memmap(folder / "logits.npy", "w+", np.float32, (n, CLASSES))
    with (folder / "features.bin").open("wb") as stream:
        for start in range(0, n, ROWS):
            m = min(ROWS, n - start)
            cluster = rng.integers(0, CLASSES * 4, m)
            label = cluster // 4
            deep = centres[cluster] + rng.normal(size=(m, 24)).astype(np.float32)
            (deep @ spread + rng.normal(0, 0.1, (m, width)).astype(np.float32)).astype(np.float16).tofile(
                stream
            )
            inside = np.isin(cluster, failing)
            wrong = rng.random(m) < np.where(inside, 0.8, 0.08)
            answer = np.where(wrong, (label + rng.integers(1, CLASSES, m)) % CLASSES, label)
            z = rng.normal(size=(m, CLASSES)).astype(np.float32)
            z[np.arange(m), answer] += 4 + 2 * rng.random(m) - wrong * rng.random(m)
            labels[start : start + m], hit[start : start + m], logits[start : start + m] = label, inside, z


def measure(folder: Path, n: int, width: int) -> dict[str, object]:
    from mld_core.evaluation.analysis.analysis import analyse
    from mld_core.evaluation.engine.executor import Workers
    from mld_core.evaluation.metrics.classification import auroc
    from mld_core.evaluation.space.arrays import SplitArrays

    stages: dict[str, float] = {}

    class Clock(Workers):
        @contextmanager
        def stage(self, name: str, total: int | None = None) -> Iterator[None]:
            start, short = time.perf_counter(), name.removesuffix(" (test)")
            yield
            stages[short] = round(time.perf_counter() - start, 1)
            print(f"  {short}: {stages[short]} s", file=sys.stderr, flush=True)

    labels, hit = np.load(folder / "labels.npy"), np.load(folder / "hit.npy")
    logits = np.load(folder / "logits.npy", mmap_mode="r")
    arrays = SplitArrays(logits, labels, {"features": Stored(folder / "features.bin", n, width)})
    start = time.perf_counter()
    made = analyse(arrays, workers=Clock())
    seconds = time.perf_counter() - start
    cpu = time.process_time()
    wrong = made.errors == 1
    return {
        "n": n,
        "width": width,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_gb": round(peak_bytes() / 1e9, 2),
        "method": made.facts["neighbours"],
        "recall": made.facts["neighbour_recall"],
        "auroc": auroc(made.error_proba, wrong),
        "auroc_msp": auroc(1 - made.msp, wrong),
        "dense": float(made.flags.dense.mean()),
        "dense_in_planted": float(made.flags.dense[hit].mean()),
        "load": os.getloadavg()[0],
        "stages": stages,
    }


def table(rows: list[dict]) -> str:
    """The Markdown table; the last column compares with n log n from the row above."""
    names = list(dict.fromkeys(name for row in rows for name in row["stages"]))
    head = (
        f"{CLASSES} classes, three repeats of the cross-fit, 200 bootstrap replicates, {os.cpu_count()} "
        "cores. Seconds; `CPU` is the process's own time over all threads, which other work on the machine (`load`) does "
        "not lengthen much; the growth is of that."
    )
    titles = f"| units x features | total | CPU | peak GB | neighbours (recall) | {' | '.join(names)} | error AUROC (MSP) "
    titles += "| dense (of the planted 5 %) | load | growth / n log n |"
    lines = [head, "", titles, "|---|---|---|---|---|" + "---|" * (len(names) + 4)]
    before = None
    for row in rows:
        growth = "-"
        if before and before["width"] == row["width"]:
            expected = row["n"] * np.log(row["n"]) / (before["n"] * np.log(before["n"]))
            growth = f"{row['cpu_seconds'] / before['cpu_seconds'] / expected:.2f}"
        stages = " | ".join(f"{row['stages'].get(name, 0)}" for name in names)
        lines.append(
            f"| {row['n']:,} x {row['width']} | {row['seconds']} | {row['cpu_seconds']} | {row['peak_gb']} | {row['method']} ({row['recall']:.3f}) | {stages} | "
            f"{row['auroc']:.3f} ({row['auroc_msp']:.3f}) | {row['dense']:.3f} ({row['dense_in_planted']:.3f}) | {row['load']:.1f} | {growth} |"
        )
        before = row
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    old = path.read_text()
    if BEGIN not in old:
        old = f"{old.rstrip()}\n\n## Scale\n\n{BEGIN}\n{END}\n"
    before, rest = old.split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


def size_of(text: str) -> tuple[int, int]:
    """Units and features of `1000000` or `10000000x64`."""
    n, _, width = text.partition("x")
    return int(n), int(width or WIDTH)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        type=size_of,
        nargs="*",
        default=[(n, WIDTH) for n in (100_000, 300_000, 1_000_000, 3_000_000)],
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mld-scale")
    parser.add_argument("--write", action="store_true", help="write the table to docs/evaluation.md")
    parser.add_argument("--child", type=size_of, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure(chosen.folder, *chosen.child)))
        return 0
    results = chosen.folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    for n, width in chosen.sizes:
        name = f"{n}x{width}"
        data = chosen.folder / name
        data.mkdir(exist_ok=True)
        print(f"{n:,} units x {width}", file=sys.stderr, flush=True)
        generate(data, n, width)
        command = [sys.executable, __file__, "--child", name, "--folder", str(data)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        (results / f"{name}.json").write_bytes(done.stdout)
        for file in data.iterdir():
            file.unlink()
    rows = sorted((json.loads(file.read_text()) for file in results.glob("*.json")), key=lambda row: row["n"])
    text = table(rows)
    print(text)
    if chosen.write:
        write(Path(__file__).parents[2] / "docs" / "evaluation.md", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
