"""Labels of one class given to another, and models that confuse two: `python tests/benchmarks/faults/label_pairs.py`.

A pair of classes is planted in each set: a share of the one's test labels becomes the other's (wrong labels), or of its
train labels while the test labels are right (a model that errs). Five seeds, MLP and linear model, with and without a
recorded train split: what C01 flags, and what it flags where pairs are not asked for (of a class taught nearly wholly as
another: where the model's confusions are not). Names of sets choose among them, and so do shares.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace

import numpy as np
from strangers import ap, f1, run, strangers

from mld_core.evaluation.analysis.labels import quality
from mld_core.evaluation.analysis.labels.pool import fit_pool

SEEDS = range(5)
SETS = {"digits": (2, 3), "wine": (1, 2), "cancer": (0, 1), "snippets": (2, 3)}
WHOLLY = 0.97
"""Of all the train labels of a class, such that no class is without any; wine has too few for it."""

CASES = [
    ("wrong labels", 0.4),
    ("wrong labels", 0.2),
    ("model taught", WHOLLY),
    ("model taught", 0.8),
    ("model taught", 0.4),
    ("neither", 0.0),
]


ASKED = quality.find_pairs, quality.find_confusions


def planted(name: str, seed: int, kind: str, what: str, share: float):
    flip = strangers.class_noise(*SETS[name], share)
    key = {"wrong labels": "flip", "model taught": "flip_train"}.get(what)
    return strangers.recorded(name, seed, kind=kind, **({key: flip} if key else {}))


def figures(arrays, hit) -> tuple[float, ...]:
    made = run(arrays)
    flagged = made.diagnoses.masks["C01"]
    right = hit[flagged].mean() if flagged.any() else np.nan
    return (
        float(flagged.sum()),
        right,
        flagged[hit].mean() if hit.any() else np.nan,
        f1(flagged, hit),
        ap(-made.label_quality, hit),
    )


def asked(share: float, pairs: bool) -> None:
    """Set whether pairs are asked for, or the model's confusions."""
    quality.find_pairs, quality.find_confusions = ASKED
    if pairs:
        return
    if share == WHOLLY:
        quality.find_confusions = lambda values, labels, own, around: (
            [],
            *(fit_pool(values, labels, own, noise=noise) for noise in (False, True)),
        )
    else:
        quality.find_pairs = lambda values, labels, own, start, around, confused: ([], start)


def main() -> int:
    warnings.simplefilter("ignore")
    print(
        "| set | planted | share | wrong labels | flagged | precision | recall | F1 | AUPRC | without: flagged | F1 | AUPRC |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    shares = [float(word) for word in sys.argv[1:] if word not in SETS]
    for name in [word for word in sys.argv[1:] if word in SETS] or SETS:
        for what, share in CASES:
            if (name, share) == ("wine", WHOLLY) or (shares and share not in shares):
                continue
            found: dict[bool, list[tuple[float, ...]]] = {True: [], False: []}
            wrong = []
            for seed in SEEDS:
                for kind in ("mlp", "linear"):
                    arrays, hit = planted(name, seed, kind, what, share)
                    for one in (arrays, replace(arrays, train=None)):
                        wrong.append(hit.sum())
                        for pairs, rows in found.items():
                            asked(share, pairs)
                            rows.append(figures(one, hit))
            asked(share, True)
            with_pairs, without = (np.nanmean(np.array(found[pairs]), axis=0) for pairs in found)
            row = [
                *(f"{with_pairs[0]:.1f} {without[0]:.1f}".split()),
                *(f"{x:.3f}" for x in (*with_pairs[1:], *without[3:])),
            ]
            print(
                f"| {name} | {what} | {share} | {np.mean(wrong):.1f} | {row[0]} | {' | '.join(row[2:6])} | {row[1]} | {' | '.join(row[6:])} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
