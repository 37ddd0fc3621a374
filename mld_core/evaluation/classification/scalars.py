"""The rounds of `classification_v1` over one pass: scalars, then the ranking metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis.units import unit_ids, unit_name, unit_schema
from mld_core.evaluation.codes.notation import classification_codes
from mld_core.evaluation.engine.executor import Round, Sink, Workers
from mld_core.evaluation.engine.passes import ROW
from mld_core.evaluation.metrics import classification as metrics
from mld_core.records.format.vectors import to_numpy

Batches = Callable[[], Iterable[pa.RecordBatch]]


@dataclass(frozen=True)
class ClassificationSplit:
    """What the kernels need to know about the pass: plain data.

    Attributes:
        dataset: Name of the split.
        n_epoch: Epoch of the pass, or None.
        n_class: Number of classes.
        user_fields: The user's own columns and their Arrow types.
        has_logits: Whether the batches carry `logits`; without them only what the samples hold is known.
        sigmoid: Whether each class was trained by itself: probabilities are sigmoids, losses and entropies
            sums over the classes.
    """

    dataset: str
    n_epoch: int | None
    n_class: int
    user_fields: Mapping[str, pa.DataType]
    has_logits: bool = True
    sigmoid: bool = False

    @property
    def schema(self) -> pa.Schema:
        """Schema of the unit table."""
        return unit_schema(self.user_fields)


@dataclass
class Pairs:
    """Sparse (truth, prediction) counts; prediction -1 where the logits were not finite."""

    keys: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of(cls, truth: NDArray[np.int64], prediction: NDArray[np.int64]) -> Pairs:
        """Count (N,) labelled units."""
        return cls(*_unique_pairs(np.stack([truth, prediction], axis=1), np.ones(len(truth), np.int64)))

    def merge(self, other: Pairs) -> Pairs:
        """The counts of both."""
        keys = np.concatenate([self.keys, other.keys])
        return Pairs(*_unique_pairs(keys, np.concatenate([self.counts, other.counts])))


def _unique_pairs(
    keys: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    distinct, where = np.unique(keys, axis=0, return_inverse=True)
    total = np.zeros(len(distinct), np.int64)
    np.add.at(total, where.reshape(-1), counts)
    return distinct, total


@dataclass
class ClassificationState:
    """Counts and sums of any set of batches.

    Attributes:
        counts: Units.
        labeled: Units with a usable label.
        errors: Labelled units whose prediction differs, non-finite logits included.
        nonfinite: Units with NaN or infinity in the logits.
        out_of_range: Units whose label is at or above the number of classes; they count as unlabelled.
        scored: Units with finite logits, the ones `entropy_sum` is over.
        scored_labeled: Labelled units with finite logits, the ones `loss_sum` is over.
        entropy_sum: Sum of the units' entropies, nats.
        loss_sum: Sum of their cross-entropies, nats.
        pairs: Confusion counts of the labelled units.
    """

    counts: int = 0
    labeled: int = 0
    errors: int = 0
    nonfinite: int = 0
    out_of_range: int = 0
    scored: int = 0
    scored_labeled: int = 0
    entropy_sum: float = 0.0
    loss_sum: float = 0.0
    pairs: Pairs = field(default_factory=Pairs)

    def merge(self, other: ClassificationState) -> ClassificationState:
        """The state of both."""
        sums = {name: value + getattr(other, name) for name, value in vars(self).items() if name != "pairs"}
        return ClassificationState(**sums, pairs=self.pairs.merge(other.pairs))


@dataclass
class _Scores:
    """Per-unit figures of one batch; -1 and NaN where there is none."""

    prediction: NDArray[np.int64]
    confidence: NDArray[np.float64]
    loss: NDArray[np.float64]
    entropy: NDArray[np.float64]
    finite: NDArray[np.bool_]


def scalars_kernel(
    batch: pa.RecordBatch, split: ClassificationSplit
) -> tuple[pa.RecordBatch, ClassificationState]:
    """First round: a batch of samples (and logits) to rows of the unit table and their counts."""
    truth, scores, wrong, state = _judged(batch, split)
    return _unit_batch(batch, split, truth, scores, wrong), state


def counts_kernel(batch: pa.RecordBatch, split: ClassificationSplit) -> tuple[None, ClassificationState]:
    """The counts of the first round alone."""
    return None, _judged(batch, split)[3]


def _judged(
    batch: pa.RecordBatch, split: ClassificationSplit
) -> tuple[NDArray[np.int64], _Scores, NDArray[np.bool_], ClassificationState]:
    """Truth, figures and errors of a batch, and their counts."""
    truth, soft, out_of_range = read_labels(batch, split.n_class)
    scores = _from_logits(batch, truth, soft, split) if split.has_logits else _from_samples(batch)
    labeled = truth >= 0
    wrong = labeled & (scores.prediction != truth)
    loss_known = labeled & ~np.isnan(scores.loss)
    entropy_known = ~np.isnan(scores.entropy)
    state = ClassificationState(
        counts=batch.num_rows,
        labeled=int(labeled.sum()),
        errors=int(wrong.sum()),
        nonfinite=int((~scores.finite).sum()),
        out_of_range=out_of_range,
        scored=int(entropy_known.sum()),
        scored_labeled=int(loss_known.sum()),
        entropy_sum=float(scores.entropy[entropy_known].sum()),
        loss_sum=float(scores.loss[loss_known].sum()),
        pairs=Pairs.of(truth[labeled], scores.prediction[labeled]),
    )
    return truth, scores, wrong, state


def read_labels(
    batch: pa.RecordBatch, n_class: int
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None, int]:
    """Read the truth of a batch.

    Negative labels (-1, -100: "ignore") and labels of `n_class` or more count as unlabelled; a soft label
    stands for its largest class where there is no hard one.

    Returns:
        (N,) classes with -1 for unlabelled; (N, K) soft labels summing to 1 with NaN rows where there is
        none, or None where no row has one; the number of labels at or above `n_class`.
    """
    truth = _integers(batch.column("label"))
    out_of_range = int((truth >= n_class).sum())
    truth[(truth < 0) | (truth >= n_class)] = -1
    if "soft_label" not in batch.schema.names or batch.column("soft_label").null_count == batch.num_rows:
        return truth, None, out_of_range
    soft = np.full((batch.num_rows, n_class), np.nan)
    for row, values in enumerate(batch.column("soft_label").to_pylist()):
        if values is not None and len(values) == n_class and sum(values) > 0:
            soft[row] = np.asarray(values, np.float64) / sum(values)
    known = ~np.isnan(soft).any(axis=1)
    fill = known & (truth < 0)
    truth[fill] = soft[fill].argmax(axis=1)
    return truth, soft, out_of_range


def read_logits(batch: pa.RecordBatch) -> NDArray[np.floating]:
    """The (N, K) stored logits of a batch."""
    index = batch.schema.get_field_index("logits")
    return np.asarray(to_numpy(batch.column(index), batch.schema.field(index)))


def _from_logits(
    batch: pa.RecordBatch,
    truth: NDArray[np.int64],
    soft: NDArray[np.float64] | None,
    split: ClassificationSplit,
) -> _Scores:
    logits = read_logits(batch)
    finite = metrics.finite_rows(logits)
    rows = len(logits)
    unknown = [np.full(rows, np.nan) for _ in range(3)]
    scores = _Scores(np.full(rows, -1, np.int64), unknown[0], unknown[1], unknown[2], finite)
    good = np.flatnonzero(finite)
    if len(good) == 0:
        return scores
    kept = logits[good]
    log_p = metrics.log_probabilities(kept, sigmoid=split.sigmoid)
    scores.prediction[good] = kept.argmax(axis=1)
    scores.confidence[good] = np.exp(log_p.max(axis=1))
    scores.entropy[good] = metrics.sigmoid_entropy(kept) if split.sigmoid else metrics.entropy(log_p)
    loss = _loss(kept, log_p, np.maximum(truth[good], 0), None if soft is None else soft[good], split)
    scores.loss[good] = np.where(truth[good] >= 0, loss, np.nan)
    return scores


def _loss(
    logits: NDArray[np.floating],
    log_p: NDArray[np.float64],
    truth: NDArray[np.int64],
    soft: NDArray[np.float64] | None,
    split: ClassificationSplit,
) -> NDArray[np.float64]:
    """(n,) cross-entropies against the soft labels, else the hard ones."""
    with_soft = np.zeros(len(truth), np.bool_) if soft is None else ~np.isnan(soft).any(axis=1)
    if split.sigmoid:
        target = np.eye(split.n_class)[truth]
        if soft is not None:
            target[with_soft] = soft[with_soft]
        return metrics.sigmoid_loss(logits, target)
    loss = -log_p[np.arange(len(truth)), truth]
    if soft is not None:
        mass = soft[with_soft]
        loss[with_soft] = -np.where(mass > 0, mass * log_p[with_soft], 0.0).sum(axis=1)
    return np.asarray(loss)


def _from_samples(batch: pa.RecordBatch) -> _Scores:
    prediction = _integers(batch.column("prediction"))
    unknown = np.full(batch.num_rows, np.nan)
    return _Scores(
        prediction,
        _floats(batch.column("confidence")),
        _floats(batch.column("loss")),
        unknown,
        prediction >= 0,
    )


def _unit_batch(
    batch: pa.RecordBatch,
    split: ClassificationSplit,
    truth: NDArray[np.int64],
    scores: _Scores,
    wrong: NDArray[np.bool_],
) -> pa.RecordBatch:
    rows = batch.num_rows
    first = batch.column(ROW)[0].as_py() if rows else 0
    columns: dict[str, pa.Array] = {
        "unit_id": unit_ids(first, rows),
        "dataset": pa.array([split.dataset] * rows, pa.string()),
        "n_epoch": pa.array([split.n_epoch] * rows, pa.int32()),
        "unit_kind": pa.array(["sample"] * rows, pa.string()),
        "gt": pa.array(truth, pa.int32(), mask=truth < 0),
        "prediction": pa.array(scores.prediction, pa.int32(), mask=scores.prediction < 0),
        "confidence": pa.array(scores.confidence, pa.float32(), from_pandas=True),
        "is_error": pa.array(wrong, pa.bool_(), mask=truth < 0),
        "nonfinite": pa.array(~scores.finite, pa.bool_()),
        "loss": pa.array(scores.loss, pa.float64(), from_pandas=True),
        "entropy": pa.array(scores.entropy, pa.float64(), from_pandas=True),
        "error_code": classification_codes(truth, scores.prediction),
    }
    for name in ("input_id", "input_hash", "id_source"):
        columns[name] = batch.column(name).cast(pa.string())
    for name in split.user_fields:
        columns[unit_name(name)] = batch.column(name)
    schema = split.schema
    made = [columns.get(one.name, pa.nulls(rows, one.type)) for one in schema]
    return pa.RecordBatch.from_arrays(made, schema=schema)


def _integers(column: pa.Array) -> NDArray[np.int64]:
    filled = column.cast(pa.int64()).fill_null(-1)
    return np.array(filled.to_numpy(zero_copy_only=False), np.int64)


def _floats(column: pa.Array) -> NDArray[np.float64]:
    return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def scalars(
    engine: Workers, split: ClassificationSplit, batches: Batches, rows: int, sink: Sink | None
) -> ClassificationState:
    """Run the first round over a pass; rows of the unit table go to `sink` in order, if there is one."""
    name, zero = f"scalars of {split.dataset}", ClassificationState()
    if sink is None:
        return engine.run(Round(name, counts_kernel, zero, split), batches(), rows=rows)
    return engine.run(Round(name, scalars_kernel, zero, split), batches(), sink=sink, rows=rows)


@dataclass(frozen=True)
class Ranking:
    """One-vs-rest ranking metrics of each class, and whether they are exact or from histograms."""

    auroc: list[float | None]
    auprc: list[float | None]
    method: str


def metric_row(
    state: ClassificationState, ranking: Ranking | None, n_class: int, *, sigmoid: bool = False
) -> dict[str, float | int | str | None]:
    """The metrics of one pass under the names of the public tables; None where a metric has no value.

    `net_entropy_loss` and `net_entropy` are sums over the counted units in nats; their means carry `_mean`.
    """
    entropy_known, loss_known = state.scored > 0, state.scored_labeled > 0
    mean_entropy = metrics.ratio(state.entropy_sum, state.scored)
    largest = n_class * float(np.log(2)) if sigmoid else float(np.log(max(n_class, 1)))
    norm = None if mean_entropy is None or n_class < 2 else mean_entropy / largest
    return {
        "counts": state.counts,
        "accuracy": metrics.ratio(state.labeled - state.errors, state.labeled),
        "auroc": metrics.macro_auroc(ranking.auroc) if ranking else None,
        "auprc": metrics.macro(ranking.auprc) if ranking else None,
        "net_entropy_loss": state.loss_sum if loss_known else None,
        "net_entropy": state.entropy_sum if entropy_known else None,
        "count_labeled": state.labeled,
        "count_error": state.errors,
        "count_nonfinite": state.nonfinite,
        "error_rate": metrics.ratio(state.errors, state.labeled),
        "net_entropy_loss_mean": metrics.ratio(state.loss_sum, state.scored_labeled),
        "net_entropy_mean": mean_entropy,
        "net_entropy_norm": norm,
        "ranking_method": ranking.method if ranking else None,
    }


def class_rows(
    state: ClassificationState, ranking: Ranking | None, n_class: int
) -> list[dict[str, float | int | None]]:
    """One row for each class; its `accuracy` is the recall, AUROC and AUPRC are one-vs-rest."""
    truth, prediction = state.pairs.keys[:, 0], state.pairs.keys[:, 1]
    right = truth == prediction
    counts = np.bincount(truth, weights=state.pairs.counts, minlength=n_class)
    hits = np.bincount(truth[right], weights=state.pairs.counts[right], minlength=n_class)
    made = prediction >= 0
    predicted = np.bincount(prediction[made], weights=state.pairs.counts[made], minlength=n_class)[:n_class]
    return [
        {
            "class": index,
            "counts": int(counts[index]),
            "count_error": int(counts[index] - hits[index]),
            "accuracy": metrics.ratio(float(hits[index]), float(counts[index])),
            "precision": metrics.ratio(float(hits[index]), float(predicted[index])),
            "auroc": ranking.auroc[index] if ranking else None,
            "auprc": ranking.auprc[index] if ranking else None,
        }
        for index in range(n_class)
    ]
