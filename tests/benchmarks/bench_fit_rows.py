"""What a smaller fit of the error estimator costs: `python tests/benchmarks/bench_fit_rows.py [--rows 50000 ...]`.

Splits without any planted order of rows: pockets (a hidden space whose small regions and slopes decide about errors,
100 classes) and digits (a network's answers on augmented pictures, some of them faint). For every number of rows one
cross-fit of each of several splits: mean AUROC and Brier score of the error probability and CPU time, and from which to
which value what the smaller fit loses against all rows goes. Whatever the units, the fits are capped as beyond `WHOLE`
and have its trees; all rows have those of fewer units. With `--before` all rows are fitted once more, by 120 trees at a
rate of 0.06 with 255 bins a column, and what is lost is lost against those.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "faults"))

CLASSES, HIDDEN, WIDTH = 100, 24, 128
BEFORE = {"max_iter": 120, "learning_rate": 0.06, "max_leaf_nodes": 15}
ALL, SLOW = 10**9, 10**10


def pockets(n: int, seed: int):
    """Errors by three slopes, one interaction and sixty pockets of about 0.2 % each, seen through noisy logits."""
    from mld_core.evaluation.space.arrays import SplitArrays

    rng = np.random.default_rng([1, seed])
    centres = rng.normal(size=(CLASSES * 4, HIDDEN)).astype(np.float32)
    cluster = rng.integers(0, CLASSES * 4, n)
    deep = centres[cluster] + rng.normal(size=(n, HIDDEN)).astype(np.float32)
    log_odds = -3.2 + 0.8 * deep[:, 0] - 0.6 * np.abs(deep[:, 1]) + 0.7 * deep[:, 2] * (deep[:, 3] > 0)
    for row in rng.integers(0, n, 60):
        near = ((deep[:, :6] - deep[row, :6]) ** 2).sum(axis=1)
        log_odds[near <= np.quantile(near, 0.002)] += 3
    wrong = rng.random(n) < 1 / (1 + np.exp(-log_odds))
    label = cluster // 4
    logits = rng.normal(size=(n, CLASSES)).astype(np.float32)
    logits[np.arange(n), label] += 5 - 0.3 * log_odds + rng.normal(size=n)
    features = deep @ rng.normal(size=(HIDDEN, WIDTH)).astype(np.float32) / 5
    features += rng.normal(0, 0.3, (n, WIDTH)).astype(np.float32)
    return SplitArrays(logits, label, {"features": features}, errors=wrong.astype(np.int8))


def digits(n: int, seed: int):
    """The digits of the fault suite, as many as asked for; 5 % are faint negatives."""
    import networks
    import pictures

    from mld_core.evaluation.space.arrays import SplitArrays

    pair = pictures.digits(seed)
    net, _ = networks.train(pair.train, "mlp", seed, 8, 10)
    rng = np.random.default_rng([2, seed])
    own = pair.test
    test = pictures.augment(own.x, own.y, own.base, n, rng, noise=0.1)
    recorded = networks.record(net, pictures.faint_negative(test, seed))
    return SplitArrays(recorded.logits, test.y, recorded.features)


def cross_fits(arrays, sizes: list[int]) -> np.ndarray:
    """(sizes, 3) AUROC, Brier score and CPU seconds of one cross-fit each."""
    from mld_core.evaluation.analysis import analysis, error_probability
    from mld_core.evaluation.analysis.answers import AnalysisOptions
    from mld_core.evaluation.engine.executor import Workers
    from mld_core.evaluation.metrics.classification import auroc
    from mld_core.evaluation.space import space
    from mld_core.evaluation.space.neighbourhood import surroundings

    made, trees = [], error_probability.TREES
    with Workers() as pool:
        work = analysis.prepare(arrays, AnalysisOptions(), pool)
        points = space.project(space.fit_space(arrays.layers, pool), arrays.layers, pool)
        around = surroundings(points, work.groups, work.known, pool)
        inputs = analysis._stack_inputs(work, around, points, None)
        wrong = work.errors == 1
        for rows in sizes:
            error_probability.FIT_ROWS = rows
            error_probability.TREES = BEFORE if rows == SLOW else trees
            error_probability.WHOLE = 0 if rows < len(wrong) else len(wrong)
            start = time.process_time()
            fitted = error_probability.estimate_errors(
                inputs, work.scores.msp, work.groups, work.folds[:1], pool
            )
            cpu = time.process_time() - start
            brier = float(((fitted.error_proba - wrong) ** 2).mean())
            made.append((auroc(fitted.error_proba, wrong), brier, cpu))
    error_probability.TREES = trees
    return np.array(made)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[8_000, 16_000, 32_000, 50_000])
    parser.add_argument("--units", type=int, default=250_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", nargs="*", default=["pockets", "digits"])
    parser.add_argument("--before", action="store_true", help="against the trees of before")
    chosen = parser.parse_args()
    print(
        "| split, units, seeds | rows of a fit | error AUROC | lost against all | Brier | CPU s of one cross-fit |"
    )
    print("|---|---|---|---|---|---|")
    for name in chosen.splits:
        sizes = [
            *(rows for rows in chosen.rows if rows < chosen.units),
            ALL,
            *([SLOW] if chosen.before else []),
        ]
        made = np.array(
            [cross_fits(globals()[name](chosen.units, seed), sizes) for seed in range(chosen.seeds)]
        )
        lost = made[:, -1:, 0] - made[:, :, 0]
        for place, rows in enumerate(sizes):
            area, brier, cpu = made[:, place].mean(axis=0)
            spread = f"{lost[:, place].min():.4f} to {lost[:, place].max():.4f}"
            fit = {ALL: "all", SLOW: "all, 120 trees of 255 bins"}.get(rows, f"{rows:,}")
            print(
                f"| {name}, {chosen.units:,}, {chosen.seeds} | {fit} | "
                f"{area:.4f} | {'-' if rows == sizes[-1] else spread} | {brier:.5f} | {cpu:.1f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
