"""What it costs that pairs of classes count only where they hold most wrong labels: `python tests/benchmarks/faults/label_swaps.py`.

Ten classes, three or all of them in pairs; 30 % of the labels of one class of each pair are the other's, and a share of all
labels is any label. Four seeds; mean AUROC and average precision of the label quality as it is, and with the rule off.
"""

from __future__ import annotations

import numpy as np

CLASSES, SWAPPED, SEEDS = 10, 0.3, 4
CASES = [(6_000, 3, 0.1, 3.0), (6_000, 3, 0.1, 1.5), (1_500, 3, 0.1, 2.0), (6_000, 5, 0.15, 2.0)]
"""Units, pairs, share of labels that are any label, and how far the model tells its classes apart."""


def plant(seed: int, units: int, pairs: int, stray: float, skill: float):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, units)
    z = rng.normal(size=(units, CLASSES))
    z[np.arange(units), truth] += skill
    labels = truth.copy()
    for pair in range(pairs):
        labels[(truth == 2 * pair) & (rng.random(units) < SWAPPED)] = 2 * pair + 1
    any_label = rng.random(units) < stray
    labels[any_label] = rng.integers(0, CLASSES, any_label.sum())
    return 1.5 * z, labels, labels != truth


def main() -> int:
    from sklearn.metrics import average_precision_score, roc_auc_score

    from mld_core.evaluation.analysis.labels import quality as label_quality
    from mld_core.evaluation.engine.executor import Workers
    from mld_core.evaluation.statistics.folds import assign_folds

    rule = label_quality.of_pairs
    print("| units | pairs | any label | model's AUROC | AUROC | rule off | average precision | rule off |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        alone = []
        for seed in range(SEEDS):
            logits, labels, wrong = plant(seed, *case)
            member = label_quality.log_softmax_member(logits)
            folds = assign_folds(np.arange(len(labels)), "0")
            alone.append(
                roc_auc_score(wrong, -member(np.arange(len(labels)))[np.arange(len(labels)), labels])
            )
            for ruled, figures in found.items():
                label_quality.of_pairs = rule if ruled else (lambda counts, expected: True)
                with Workers() as pool:
                    made = label_quality.label_posterior([member], labels, folds, CLASSES, pool)
                figures.append(
                    (roc_auc_score(wrong, -made.given), average_precision_score(wrong, -made.given))
                )
        label_quality.of_pairs = rule
        (auroc, precision), (auroc_off, precision_off) = (np.mean(found[ruled], axis=0) for ruled in found)
        print(
            f"| {case[0]:,} | {case[1]} | {case[2]} | {np.mean(alone):.3f} | {auroc:.3f} | {auroc_off:.3f} | "
            f"{precision:.3f} | {precision_off:.3f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
