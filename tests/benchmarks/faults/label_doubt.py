"""Wrong labels that follow the model's doubt, and right labels that look like them.

    python tests/benchmarks/faults/label_doubt.py [SETS] [--seeds 3]

Each set three times, MLP and linear model, train split recorded: its labels right; 5 % of them the runner-up, more
likely the less sure the model is; and right labels of a world that is as uncertain as the wrong ones made it look:
each drawn from the network's softmax, its temperature fitted to the wrong labels. What C01 and cleanlab's
find_label_issues flag of each. In the last world every flag is false, and a rule that reads only how likely each
label is flags as many as in the one before.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import replace

import baselines
import numpy as np
from strangers import f1, run, strangers

from mld_core.evaluation.analysis.labels.pool import fit_pool, normalised
from mld_core.evaluation.space.arrays import SplitArrays

SETS = ("digits", "wine", "cancer", "snippets", "moons", "blobs", "shells")
"""The mixture has wrong labels of its own: one in a hundred is drawn at random (`make_classification`). Sets that the
rule was not made with: rings, hastie, crowd."""


def drawn(arrays: SplitArrays, seed: int) -> SplitArrays:
    """Labels drawn from the network's softmax, its temperature fitted to the labels that are there."""
    fitted = fit_pool([arrays.logits.astype(np.float64)], arrays.labels, [False], noise=False)
    p = normalised(fitted.weights[0] * arrays.logits.astype(np.float64))
    chance = np.random.default_rng(seed).random((arrays.rows, 1))
    return replace(arrays, labels=np.minimum((p.cumsum(axis=1) < chance).sum(axis=1), arrays.n_class - 1))


def figures(arrays: SplitArrays, hit: np.ndarray) -> list[tuple[float, float, float]]:
    """Share that is flagged, how much of it is wrong, F1: ours, find_label_issues."""
    flags = run(arrays).diagnoses.masks["C01"], baselines.cleanlab_issues(arrays.logits, arrays.labels)
    return [(one.mean(), hit[one].mean() if one.any() else np.nan, f1(one, hit)) for one in flags]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="*", default=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        "| set | right labels: flagged | 5 % wrong: flagged | precision | F1 | as uncertain, right: flagged |"
    )
    print("|---|---|---|---|---|---|")
    for name in chosen.sets or SETS:
        worlds: list[list[list[tuple[float, float, float]]]] = [[], [], []]
        for seed in range(chosen.seeds):
            for kind in ("mlp", "linear"):
                right, none = strangers.recorded(name, seed, kind=kind)
                noisy, hit = strangers.instance_noise(right, 0.05, seed)
                for world, made in zip(
                    worlds, ((right, none), (noisy, hit), (drawn(noisy, seed), none)), strict=True
                ):
                    world.append(figures(*made))
        means = [np.nanmean(np.array(world), axis=0) for world in worlds]
        cells = [means[0][:, 0], *means[1].T, means[2][:, 0]]
        print(f"| {name} | {' | '.join(f'{ours:.3f}, {theirs:.3f}' for ours, theirs in cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
