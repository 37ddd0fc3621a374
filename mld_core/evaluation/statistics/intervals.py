"""95 % intervals of the metrics of a split that need no error probability: means and rankings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.classification import (
    auroc_of_counts,
    average_precision_of_counts,
    finite_rows,
    log_probabilities,
    macro,
    macro_auroc,
)
from mld_core.evaluation.statistics.blocks import let_go, rows_at_once, spans
from mld_core.evaluation.statistics.bootstrap import REPLICATES, bootstrap
from mld_core.evaluation.statistics.folds import group_codes, key_hashes

RANKED_CELLS = 2**20
"""Up to this many units x classes the intervals of auroc and auprc are computed; beyond they are null."""


def mean_intervals(
    values: dict[str, NDArray[np.floating]],
    keys: NDArray[np.generic],
    workers: Workers,
    *,
    replicates: int = REPLICATES,
) -> dict[str, float | None]:
    """`<name>_lo` and `<name>_hi` of the means of (N,) values by cluster bootstrap; NaN is left out.

    Args:
        values: Name -> (N,) values.
        keys: (N,) group keys.
        workers: Open pool.
        replicates: How many.
    """
    distinct, groups = group_codes(keys)
    known = {name: ~np.isnan(value) for name, value in values.items()}
    filled = {name: np.nan_to_num(np.asarray(value, np.float64)) for name, value in values.items()}

    def means(weight: NDArray[np.float64]) -> dict[str, float | None]:
        made: dict[str, float | None] = {}
        for name, value in filled.items():
            mass = float(weight[known[name]].sum())
            made[name] = float((weight * value).sum()) / mass if mass > 0 else None
        return made

    found = bootstrap(means, key_hashes(distinct, "0"), groups, workers, replicates=replicates)
    return _spread(found)


def ranking_intervals(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    keys: NDArray[np.generic],
    workers: Workers,
    *,
    replicates: int = REPLICATES,
    sigmoid: bool = False,
) -> dict[str, float | None]:
    """`auroc_lo`, `auroc_hi`, `auprc_lo`, `auprc_hi` of the macro one-vs-rest metrics.

    Args:
        logits: (N, K) logits.
        labels: (N,) true classes, -1 where unlabelled.
        keys: (N,) group keys.
        workers: Open pool.
        replicates: How many.
        sigmoid: Whether each class was trained by itself.
    """
    n_class = logits.shape[1]
    use = _usable(logits, labels, RANKED_CELLS // max(n_class, 1))
    if len(use) == 0 or len(use) * n_class > RANKED_CELLS:
        return {}
    distinct, groups = group_codes(keys[use])
    scores = log_probabilities(np.asarray(logits[use], np.float64), sigmoid=sigmoid)
    truth = labels[use]
    places = [np.unique(scores[:, k], return_inverse=True)[1].reshape(-1) for k in range(n_class)]

    def metrics(weight: NDArray[np.float64]) -> dict[str, float | None]:
        roc, ap = [], []
        for k, place in enumerate(places):
            total = np.bincount(place, weights=weight)
            hits = np.bincount(place, weights=weight * (truth == k), minlength=len(total))
            roc.append(auroc_of_counts(hits, total))
            ap.append(average_precision_of_counts(hits, total))
        return {"auroc": macro_auroc(roc), "auprc": macro(ap)}

    return _spread(bootstrap(metrics, key_hashes(distinct, "0"), groups, workers, replicates=replicates))


def _usable(logits: NDArray[np.floating], labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Labelled rows whose logits are finite; no more are looked for once there are more than `most`."""
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    count = 0
    for span in spans(len(labels), rows_at_once(logits.shape[1])):
        good = (labels[span] >= 0) & finite_rows(np.asarray(logits[span]))
        let_go(logits)
        found.append(span.start + np.flatnonzero(good))
        count += len(found[-1])
        if count > most:
            break
    return np.concatenate(found)


def _spread(found: dict[str, tuple[float | None, float | None]]) -> dict[str, float | None]:
    made: dict[str, float | None] = {}
    for name, (low, high) in found.items():
        made[f"{name}_lo"], made[f"{name}_hi"] = low, high
    return made
