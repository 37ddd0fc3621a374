"""The ranking metrics of a classifier's pass: exact, or from histograms in rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mld_core.evaluation.classification.scalars import (
    Batches,
    ClassificationSplit,
    Ranking,
    read_labels,
    read_logits,
)
from mld_core.evaluation.engine.executor import Round, Workers
from mld_core.evaluation.metrics import classification as metrics
from mld_core.evaluation.statistics.histograms import RankHistograms

EXACT_CELLS = 2**25
"""Up to this many units x classes the ranking metrics are exact (float32 logits of 128 MiB in memory)."""

HISTOGRAM_BYTES = 2**30
"""Memory the histograms of one ranking round may take, over all threads."""


@dataclass(frozen=True)
class _Block:
    split: ClassificationSplit
    first: int
    last: int


def histogram_kernel(batch: pa.RecordBatch, block: _Block) -> tuple[None, RankHistograms]:
    """Ranking round at scale: the score histograms of the classes of one block."""
    truth, _, _ = read_labels(batch, block.split.n_class)
    logits = read_logits(batch)
    use = metrics.finite_rows(logits) & (truth >= 0)
    if not use.any():
        return None, RankHistograms.empty(block.last - block.first)
    log_p = metrics.log_probabilities(logits[use], sigmoid=block.split.sigmoid)[:, block.first : block.last]
    return None, RankHistograms.of(log_p, truth[use], block.first)


def rank(
    engine: Workers,
    split: ClassificationSplit,
    batches: Batches,
    rows: int,
    *,
    exact_cells: int = EXACT_CELLS,
) -> Ranking:
    """AUROC and average precision of every class of a pass.

    Exact up to `exact_cells` units x classes; beyond that from 65,536-bin histograms, in as many walks over
    the logits as keep the histograms of all threads within `HISTOGRAM_BYTES`.
    """
    if rows * split.n_class <= exact_cells:
        return _rank_exactly(engine, split, batches, rows)
    return rank_by_histograms(
        lambda work: engine.run(work, batches(), rows=rows), split, 2 * engine.threads + 1
    )


def rank_by_histograms(
    run: Callable[[Round[RankHistograms]], RankHistograms], split: ClassificationSplit, in_flight: int
) -> Ranking:
    """The same from histograms of as many classes a round as memory allows for `in_flight` states."""
    width = max(8, HISTOGRAM_BYTES // (in_flight * RankHistograms.empty(1).total.nbytes * 2))
    auroc: list[float | None] = []
    auprc: list[float | None] = []
    for first in range(0, split.n_class, width):
        last = min(first + width, split.n_class)
        zero, block = RankHistograms.empty(last - first), _Block(split, first, last)
        counted = run(Round(f"ranking of {split.dataset}", histogram_kernel, zero, block))
        auroc += counted.auroc()
        auprc += counted.average_precision()
    return Ranking(auroc, auprc, "histogram")


def _rank_exactly(engine: Workers, split: ClassificationSplit, batches: Batches, rows: int) -> Ranking:
    logits = np.empty((rows, split.n_class), np.float32)
    truth = np.empty(rows, np.int64)
    norm = np.empty(rows, np.float64)
    used = 0
    for batch in batches():
        labels, _, _ = read_labels(batch, split.n_class)
        values = read_logits(batch)
        use = metrics.finite_rows(values) & (labels >= 0)
        count = int(use.sum())
        logits[used : used + count] = values[use]
        truth[used : used + count] = labels[use]
        norm[used : used + count] = metrics.logsumexp(values[use]) if count else 0.0
        used += count
    logits, truth, norm = logits[:used], truth[:used], norm[:used]

    def one(index: int) -> tuple[float | None, float | None]:
        score = logits[:, index].astype(np.float64)
        score = score if split.sigmoid else np.exp(score - norm)
        counts = metrics.counts_by_score(score, truth == index)
        return metrics.auroc_of_counts(*counts), metrics.average_precision_of_counts(*counts)

    found = Ranking([], [], "exact")
    with engine.stage(f"ranking of {split.dataset}", split.n_class) as stage:
        for auroc, auprc in engine.map(one, range(split.n_class)):
            found.auroc.append(auroc)
            found.auprc.append(auprc)
            stage.advance(1)
    return found
