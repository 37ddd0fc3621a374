"""Rows of data the planted-fault suite does not know: healthy models, chance, structured noise, near copies.

    python tests/benchmarks/faults/strangers.py --seeds 3

Sets of scikit-learn and its small models; see `tests/evaluation/analysis/strangers.py`. One line a row: our figure,
the best public one beside it, mean and range over the seeds.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import baselines
import numpy as np

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.metrics.classification import auroc, average_precision

FILE = Path(__file__).parents[2] / "evaluation" / "analysis" / "strangers.py"
spec = importlib.util.spec_from_file_location("mld_tests_strangers", FILE)
strangers = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = strangers
spec.loader.exec_module(strangers)

Row = tuple[str, str, float, float]
SIZES = ((10, 60), (100, 50), (10, 5), (3, 40))
NOISES = {
    "class 2->3, 40 %": strangers.class_noise(2, 3, 0.4),
    "pairs, 20 %": strangers.pair_noise(0.2),
    "any, 5 %": strangers.any_noise(0.05),
}


def run(arrays):
    return analyse(arrays, options=strangers.QUICK)


def grave(made) -> float:
    """Share of units with a code of severity 4 or more."""
    found = [mask for code, mask in made.diagnoses.masks.items() if BY_CODE[code].severity >= 4]
    return float(np.any(found, axis=0).mean())


def rows(seed: int) -> Iterator[Row]:
    nothing = float("nan")
    for n_class, per_class in SIZES:
        for wrong in (0.0, 0.01):
            name = f"healthy {n_class} x {per_class}, {1 - wrong:.0%} right"
            made = run(strangers.healthy(n_class, per_class, seed, wrong=wrong))
            yield name, "share at severity 4 and above", grave(made), nothing
            yield name, "C02 share", float(made.diagnoses.masks["C02"].mean()), nothing
            yield name, "stable coverage", float((made.category == 0).mean()), nothing
    for data in ("digits", "mixture", "cancer"):
        for kind in ("mlp", "linear"):
            arrays = strangers.recorded(data, seed, kind=kind)[0]
            made = run(arrays)
            wrong = made.errors == 1
            issues = baselines.cleanlab_issues(arrays.logits, arrays.labels)
            yield f"clean {data} {kind}", "C01 share; find_label_issues", *shares(made, issues)
            ours, theirs = auroc(made.error_proba, wrong), auroc(1 - made.msp, wrong)
            yield f"clean {data} {kind}", "error AUROC; MSP", ours or nothing, theirs or nothing
            yield f"clean {data} {kind}", "C04 share", float(made.diagnoses.masks["C04"].mean()), nothing
    chance = strangers.at_chance(strangers.recorded("digits", seed)[0], seed)
    issues = baselines.cleanlab_issues(chance.logits, chance.labels)
    yield "model at chance", "C01 share; find_label_issues", *shares(run(chance), issues)
    for data in ("digits", "mixture"):
        for noise, flip in NOISES.items():
            arrays, hit = strangers.recorded(data, seed, flip=flip)
            best = max(
                average_precision(score, hit) or 0.0
                for score in baselines.cleanlab_scores(arrays.logits, arrays.labels).values()
            )
            for train in (True, False):
                made = run(arrays if train else replace(arrays, train=None))
                name = f"{data}, {noise}{'' if train else ', no train split'}"
                found = average_precision(-made.label_quality, hit) or 0.0
                yield name, "wrong-label AUPRC; cleanlab", found, best
                yield name, "C01 recall", float(made.diagnoses.masks["C01"][hit].mean()), nothing
        arrays, hit, margin = strangers.memorised(data, seed)
        found, aum = (
            average_precision(-run(arrays).label_quality, hit),
            average_precision(-margin.mean(0), hit),
        )
        yield f"{data}, learned noise in train", "wrong-label AUPRC; AUM", found or 0.0, aum or 0.0


def shares(made, issues) -> tuple[float, float]:
    return float(made.diagnoses.masks["C01"].mean()), float(np.mean(issues))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for seed in range(parser.parse_args().seeds):
        for fault, metric, ours, theirs in rows(seed):
            found[fault, metric].append((ours, theirs))
    print("| case | figure | ours | range | public |\n|---|---|---|---|---|")
    for (fault, metric), values in found.items():
        ours, theirs = np.array(values).T
        other = "" if np.isnan(theirs).all() else f"{theirs.mean():.3f}"
        print(f"| {fault} | {metric} | {ours.mean():.3f} | {ours.min():.3f}-{ours.max():.3f} | {other} |")


if __name__ == "__main__":
    main()
