"""What an evaluation in rounds costs, and what it gives up against the one in memory.

`python tests/benchmarks/bench_rounds.py [--sizes 60000 300000] [--engines memory rounds] [--write]`

Every size and engine runs in a process of its own on a store of n units x 64 features and 20 classes, 5 % of them in
clusters that the model fails, 2 % with a wrong label. With `--write` the tables go to docs/scale.md. What a billion units
would take is computed from the largest size in rounds, nothing of it was run.
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
from _table import peak_bytes

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "tests" / "parts" / "data")]

WIDTH, CLASSES = 64, 20
BEGIN, END = "<!-- rounds:begin -->", "<!-- rounds:end -->"


def generate(folder: Path, n: int) -> None:
    """A store of n units in parts of about 25,000, and what was planted in them."""
    from store_factory import Data, StoreFactory

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES * 4, 24)).astype(np.float32) * 1.5
    spread = (rng.normal(size=(24, WIDTH)) / 5).astype(np.float32)
    cluster = rng.integers(0, CLASSES * 4, n)
    truth, failing = cluster // 4, cluster < CLASSES * 4 // 20
    deep = centres[cluster] + rng.normal(size=(n, 24)).astype(np.float32)
    features = (deep @ spread + rng.normal(0, 0.1, (n, WIDTH)).astype(np.float32)).astype(np.float16)
    wrong = rng.random(n) < np.where(failing, 0.8, 0.08)
    answer = np.where(wrong, (truth + rng.integers(1, CLASSES, n)) % CLASSES, truth)
    logits = rng.normal(size=(n, CLASSES)).astype(np.float32)
    logits[np.arange(n), answer] += 4 + 2 * rng.random(n) - wrong * rng.random(n)
    flipped = rng.random(n) < 0.02
    labels = np.where(flipped, (truth + rng.integers(1, CLASSES, n)) % CLASSES, truth)
    ids = [f"id{number:09d}" for number in range(n)]
    hashes: list[str | None] = [f"{number:032x}" for number in range(n)]
    factory = StoreFactory(folder / "store")
    data = Data(logits, labels, ids, hashes, features=features)
    run = factory.run(n_class=CLASSES)
    factory.add_pass(run, "val", data, world_size=max(2, n // 25_000), batch=5_000)
    np.savez(folder / "planted.npz", flipped=flipped, failing=failing)


def measure(folder: Path, engine: str) -> dict[str, object]:
    import pandas as pd

    from mld_core.evaluation.classification import method
    from mld_core.evaluation.evaluator import Evaluator
    from mld_core.evaluation.metrics.classification import average_precision

    kept: list = []
    of = method.rounds_of

    def measured(workers, options):
        kept.append(of(workers, options))
        kept[0].measure = True
        return kept[0]

    method.rounds_of = measured
    start = time.perf_counter()
    result = Evaluator("net", "v1", store=folder / "store").request_evaluation(
        # In rounds even where the logits of so few units fit: what a billion would take is computed from it.
        f"{engine} {time.time():.0f}",
        options={"engine": engine, "threads": 2, **({} if engine == "memory" else {"exact_cells": 0})},
    )
    seconds, cpu = time.perf_counter() - start, time.process_time()
    file = result.folder / result.info["passes"][0]["units"]
    units = pd.read_parquet(file, columns=["input_id", "category", "label_quality", "error_proba"])
    row = units["input_id"].str[2:].astype(int).to_numpy()
    planted = np.load(folder / "planted.npz")
    quality = units["label_quality"].fillna(1).to_numpy(float)
    metrics = result.metrics_summary(full=True).iloc[0]
    units[["input_id", "category"]].to_parquet(folder / f"{engine}.parquet")
    return {
        "engine": engine,
        "units": len(units),
        "seconds": round(seconds, 1),
        "cpu": round(cpu, 1),
        "peak_gb": round(peak_bytes() / 1e9, 2),
        "auroc": float(metrics["error_proba_auroc"]),
        "brier": float(metrics["error_proba_brier"]),
        "ece": float(metrics["error_proba_ece"]),
        "wrong_labels": float(average_precision(1 - quality, planted["flipped"][row])),
        "n_hat": result.info["facts"][0]["n_hat"],
        "planted": int(planted["flipped"].sum()),
        "cells": result.info["facts"][0].get("cells"),
        "load": round(os.getloadavg()[0], 1),
        "rounds": [vars(one) for one in (kept[0].costs if kept and engine != "memory" else [])],
    }


def agreement(folder: Path, engine: str) -> float:
    """Share of the units with the category that the evaluation in memory gives them."""
    import pandas as pd

    one, other = (
        pd.read_parquet(folder / f"{name}.parquet").set_index("input_id") for name in ("memory", engine)
    )
    return float((one["category"] == other["category"].reindex(one.index)).mean())


def tables(rows: list[dict]) -> str:
    head = (
        f"{WIDTH} features, {CLASSES} classes, three repeats of the cross-fit, {os.cpu_count()} cores; other work on the "
        "machine shows in `load`. CPU seconds are the process's own over all threads."
    )
    titles = "| units | engine | error AUROC | Brier | ECE | same category | wrong labels, average precision "
    titles += "(estimated of planted) | CPU s | wall s | peak GB | load |"
    lines = [head, "", titles, "|---" * 11 + "|"]
    for row in rows:
        same = "-" if row["engine"] == "memory" else f"{row['same']:.3f}"
        lines.append(
            f"| {row['units']:,} | {row['engine']} | {row['auroc']:.4f} | {row['brier']:.4f} | {row['ece']:.4f} | {same} | "
            f"{row['wrong_labels']:.3f} ({row['n_hat']:,} of {row['planted']:,}) | {row['cpu']} | {row['seconds']} | "
            f"{row['peak_gb']} | {row['load']} |"
        )
    last = [row for row in rows if row["rounds"]][-1:]
    for row in last:
        lines += ["", f"The rounds of {row['units']:,} units, for a million:", ""]
        lines += [
            "| round | CPU s | MB of parts read | MB broadcast to each worker | MB of states | 1e9, computed: core hours | TB read |",
            "|---" * 7 + "|",
        ]
        scale, total = 1e6 / row["units"], np.zeros(2)
        for one in row["rounds"]:
            cpu, read = one["cpu_seconds"] * scale, one["read"] * scale / 1e6
            total += cpu, read
            sent = f"{one['broadcast'] / 1e6:.1f} | {one['states'] * scale / 1e6:.1f}"
            end = f"{cpu / 3.6:.1f} | {read / 1e3:.2f} |"
            lines.append(f"| {one['name'].split()[0]} | {cpu:.1f} | {read:.0f} | {sent} | {end}")
        end = f"{total[0] / 3.6:.1f} | {total[1] / 1e3:.2f} |"
        lines.append(f"| all | {total[0]:.1f} | {total[1]:.0f} | | | {end}")
        outside = row["cpu"] - sum(one["cpu_seconds"] for one in row["rounds"])
        lines += [
            "",
            f"Outside the rounds (fits, joins, the unit table): {outside:.1f} CPU s, {row['peak_gb']} GB at most.",
        ]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    before, rest = path.read_text().split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[60_000, 300_000])
    parser.add_argument("--engines", nargs="*", default=["memory", "rounds"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mld-rounds")
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.folder, chosen.one[1])))
        return 0
    rows = []
    for size in chosen.sizes:
        folder = chosen.folder / str(size)
        if not (folder / "planted.npz").exists():
            folder.mkdir(parents=True, exist_ok=True)
            generate(folder, size)
        for engine in chosen.engines:
            command = [sys.executable, __file__, "--folder", str(folder), "--one", str(size), engine]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row = json.loads(told.splitlines()[-1])
            row["same"] = agreement(folder, engine) if (folder / "memory.parquet").exists() else float("nan")
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    text = tables(rows)
    print(text)
    if chosen.write:
        write(ROOT / "docs" / "scale.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
