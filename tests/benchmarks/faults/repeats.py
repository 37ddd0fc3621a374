"""Do the categories repeat: a random half of a split against the whole, over the units of the half.

python tests/benchmarks/faults/repeats.py --seeds 3
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))

from strangers import strangers

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.space.arrays import SplitArrays

OPTIONS = replace(strangers.QUICK, salts=("0", "1", "2"))


def part(arrays: SplitArrays, rows: np.ndarray) -> SplitArrays:
    """Some units of a split."""
    features = {name: value[rows] for name, value in arrays.features.items()}
    return replace(arrays, logits=arrays.logits[rows], labels=arrays.labels[rows], features=features)


def kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Cohen's kappa; 1 where both say one and the same thing throughout."""
    both = (a == b).mean()
    by_chance = sum((a == c).mean() * (b == c).mean() for c in np.unique(a))
    return 1.0 if by_chance == 1 else float((both - by_chance) / (1 - by_chance))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared among shown; NaN where neither shows any."""
    return float((a & b).sum() / (a | b).sum()) if (a | b).any() else float("nan")


def compare(arrays: SplitArrays, seed: int) -> dict:
    half = np.sort(np.random.default_rng(seed).permutation(arrays.rows)[: arrays.rows // 2])
    whole, less = analyse(arrays, options=OPTIONS), analyse(part(arrays, half), options=OPTIONS)
    a, b = whole.category[half], less.category
    grave = whole.diagnoses.severity >= 4
    table = pd.crosstab(a, b).reindex(index=range(6), columns=range(6), fill_value=0)
    return {
        "kappa": kappa(a, b),
        "jaccard": jaccard(grave[half], less.diagnoses.severity >= 4),
        "grave whole": float(grave.mean()),
        "grave half": float((less.diagnoses.severity >= 4).mean()),
        "wrong": float((whole.errors == 1).mean()),
        "table": table.to_numpy(),
        "codes": {c: (n, less.diagnoses.counts[c]) for c, n in whole.diagnoses.counts.items() if n},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="*", default=["digits", "snippets", "cancer", "mixture"])
    parser.add_argument("--tables", action="store_true")
    args = parser.parse_args()
    for name in args.data:
        for kind in ("mlp", "linear"):
            found = [
                compare(strangers.recorded(name, seed, kind=kind)[0], seed) for seed in range(args.seeds)
            ]
            figures = {
                key: [one[key] for one in found]
                for key in ("kappa", "jaccard", "grave whole", "grave half", "wrong")
            }
            print(
                name,
                kind,
                *(f"{key} {np.round(value, 3).tolist()}" for key, value in figures.items()),
                flush=True,
            )
            if args.tables:
                print(
                    pd.DataFrame(sum(one["table"] for one in found), CATEGORIES, [c[:6] for c in CATEGORIES])
                )
                print(found[0]["codes"], flush=True)


if __name__ == "__main__":
    main()
