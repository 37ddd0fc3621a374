"""From batches' tensors to the record tables of classification; all of it runs on the writer thread.

A batch is brought into arrays by itself (`BatchJob`), so that what is wrong with it costs only its own rows;
neighbouring batches then become tables together (`ClassifiedRows`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mld_core.records.format.vectors import nonfinite_rows
from mld_core.tracing.batch.batches import CONTENT_HASH
from mld_core.tracing.batch.fingerprint import Fingerprint
from mld_core.tracing.batch.hashing import to_hex
from mld_core.tracing.batch.hashing_numpy import KIND
from mld_core.tracing.batch.identity import as_id_list
from mld_core.tracing.batch.labels import Labels, normalise_labels
from mld_core.tracing.capture.features import project
from mld_core.tracing.capture.outputs import probabilities_to_logits, sigmoid_to_logits
from mld_core.tracing.capture.rules import FeatureRule
from mld_core.tracing.capture.staging import Staged, to_float32
from mld_core.tracing.tables.columns import (
    Columns,
    Origin,
    PassState,
    own_columns,
    sample_columns,
    table_of,
    user_columns,
    vector_columns,
)
from mld_core.tracing.tables.media import media_table

Hashes: TypeAlias = list[str] | npt.NDArray[np.int64] | None
UNLABELLED: Final = "rows without a label"
_AT_ONCE: Final = 1 << 17  # float64 numbers


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Row-wise log-softmax of finite logits (N, K), in float64 by the shifted form.

    >>> np.exp(log_softmax(np.array([[0.0, 0.0]], np.float32))).tolist()
    [[0.5, 0.5]]
    """
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def chosen_and_total(
    logits: npt.NDArray[np.float32], chosen: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each row, less its largest: the chosen logit, and the logarithm of the sum of all exponentials.

    The first less the second is the chosen class's log-softmax, without the other K - 1 being written down:
    rows go through one buffer of a megabyte, as new memory for all of them costs more than the arithmetic.

    >>> [part.tolist() for part in chosen_and_total(np.zeros((1, 2), np.float32), np.array([1]))]
    [[0.0], [0.6931471805599453]]
    """
    n, k = logits.shape
    own, total = np.empty(n), np.empty(n)
    buffer = np.empty((max(1, _AT_ONCE // k), k))
    for start in range(0, n, len(buffer)):
        rows = slice(start, start + len(buffer))
        x = buffer[: len(logits[rows])]
        np.subtract(logits[rows], logits[rows].max(axis=1, keepdims=True), out=x, dtype=np.float64)
        own[rows] = x[np.arange(len(x)), chosen[rows]]
        np.exp(x, out=x)
        total[rows] = np.log(x.sum(axis=1))
    return own, total


def log_sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The logarithm of each class's own probability, of finite logits (N, K), in float64.

    >>> np.exp(log_sigmoid(np.array([[0.0, 0.0]], np.float32))).tolist()
    [[0.5, 0.5]]
    """
    return np.asarray(-np.logaddexp(0.0, -logits.astype(np.float64)), np.float64)


def half(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Round float32 to float16; PyTorch does it five times faster than numpy, to the same bits.

    >>> half(np.array([0.1, 65504.0], np.float32)).tolist()
    [0.0999755859375, 65504.0]
    """
    return torch.from_numpy(rows).half().numpy()


class Scores:
    """Prediction, confidence and loss of logits (N, K) with their labels.

    Attributes:
        finite: (N,) bool, all K logits are finite; where not, prediction, confidence and loss do not count.
        prediction: (N,) int64, the first largest logit.
        confidence: (N,) float32, the largest softmax value; where each class was trained by itself, the
            largest sigmoid.
        loss: (N,) float32, cross-entropy in nats of the stored logits (soft labels q: -sum q log p); of
            classes trained by themselves their binary cross-entropies, summed.
        has_loss: (N,) bool, finite and labelled.
    """

    def __init__(self, logits: npt.NDArray[np.float32], labels: Labels, *, sigmoid: bool = False) -> None:
        n = len(logits)
        self.finite = ~nonfinite_rows(logits)
        z = logits if self.finite.all() else np.where(self.finite[:, None], logits, np.float32(0))
        self.prediction = z.argmax(axis=1)
        self.has_loss = self.finite & labels.valid
        truth = np.where(labels.valid, labels.hard, 0)
        if labels.soft is None and not sigmoid:
            own, total = chosen_and_total(z, truth)
            self.confidence = np.exp(-total).astype(np.float32)
            self.loss = (total - own).astype(np.float32)
            return
        log_p = log_sigmoid(z) if sigmoid else log_softmax(z)
        self.confidence = np.exp(log_p.max(axis=1)).astype(np.float32)
        if labels.soft is not None:
            loss = -np.where(labels.soft > 0, labels.soft * log_p, 0.0).sum(axis=1)
        else:
            loss = -log_p[np.arange(n), truth]
        if sigmoid:
            rest = np.eye(z.shape[1])[truth] if labels.soft is None else labels.soft
            loss = loss - ((1 - rest) * log_sigmoid(-z)).sum(axis=1)
        self.loss = loss.astype(np.float32)


@dataclass(kw_only=True)
class PassContext(PassState):
    """What all batches of a classifier's pass share."""

    n_class: int
    samples: pa.Schema
    vectors: pa.Schema
    rules: tuple[FeatureRule, ...]
    sigmoid: bool = False  # each class was trained by itself


@dataclass(kw_only=True)
class Job:
    """What one batch of any task brings to the writer thread beside the model's answer."""

    unit: ClassVar[str] = "sample"

    ids: Any
    id_source: str
    hash_from: Fingerprint | None
    user: Mapping[str, Any]
    batch_idx: int
    global_step: int | None
    images: Any = None
    repeats: int = 0
    places: Any = None
    kind: str = ""

    @property
    def hurry(self) -> bool:
        """Whether the rows' ids depend on inputs that a loader may write to again."""
        held = self.hash_from
        return held is not None and held.held_bytes > 0 and self.id_source == CONTENT_HASH

    def _hashes(self, context: PassState, n: int, on_device: Any) -> list[str] | None:
        """The content's hash of each unit as text, None where there is none."""
        digests = self._digests(context, n, on_device)
        return None if digests is None else to_hex(digests)

    def _digests(self, context: PassState, n: int, on_device: Any) -> npt.NDArray[np.int64] | None:
        """The content's hash of each unit (n, 2), None where there is none."""
        fingerprint, self.hash_from = self.hash_from, None
        self.kind = KIND if fingerprint is None else fingerprint.kind
        if fingerprint is None:
            hashes = None if on_device is None or len(on_device) != n else on_device
        else:
            hashes = fingerprint.read(n)  # of frames that lie on a device, too
            if fingerprint.missing:
                context.count(fingerprint.missing, n)
        if isinstance(hashes, torch.Tensor):
            hashes = hashes.cpu()
        return None if hashes is None else np.asarray(hashes)

    def _of_a_kind(self, context: PassState, hashes: Hashes, n: int) -> Hashes:
        """What is stored: hashes of the pass's kind, which compare with one another."""
        if hashes is None or self.kind == context.hash_kind or not context.store_hash:
            return hashes
        context.count("inputs hashed in another way than the pass's first", n)
        return None

    def _origin(self, context: PassState, n: int, hashes: Hashes) -> Origin:
        """Where the rows came from, for their table."""
        return Origin(
            n=n,
            id_source=self.id_source,
            batch_idx=self.batch_idx,
            global_step=self.global_step,
            hashes=self._of_a_kind(context, hashes, n),
            user=user_columns(context, self.user, n),
            repeats=self.repeats,
            places=self.places,
        )

    def _given_ids(self, ids: Any, n: int) -> list[str]:
        found = as_id_list(ids)
        if len(found) != n:
            raise ValueError(f"{len(found)} ids for {n} {self.unit}s; give one id per {self.unit}")
        return found

    def _known(self, ids: list[str] | None) -> list[str]:
        if ids is None:
            raise ValueError(
                "no id could be made of the inputs' content (changed in place, or not divisible by "
                f"{self.unit}); give id_fn"
            )
        return ids


@dataclass(kw_only=True)
class BatchJob(Job):
    """One batch on its way to the record tables: called once, on the writer thread."""

    context: PassContext
    unit0: int
    n: int
    staged: Staged
    names: list[str]
    labels: Any
    activation: str

    @property
    def hurry(self) -> bool:
        """Also where few staging slots are left for the batches to come."""
        return super().hurry or self.staged.scarce

    def __call__(self) -> ClassifiedRows:
        """Reads what the batch holds; what it means is found out with the batches beside it.

        Raises:
            ValueError: the batch can not be recorded; the writer counts its rows as lost with this reason.
        """
        context, n = self.context, self.n
        arrays = dict(zip(self.names, self.staged.arrays(), strict=True))
        digests = self._digests(context, n, arrays.pop("input_hash", None))
        given = arrays.pop("ids", self.ids)
        if self.id_source == CONTENT_HASH:
            ids = self._known(None if digests is None else to_hex(digests))
        else:
            ids = self._given_ids(given, n)
        images, self.images = arrays.pop("images", self.images), None
        arrays.setdefault("labels", self.labels)
        origin = self._origin(context, n, digests)
        return ClassifiedRows(context, self.unit0, ids, origin, arrays, self.activation, images)


@dataclass
class ClassifiedRows:
    """The rows of one batch; on the writer thread they become tables with those beside them.

    `arrays` by the names of the job; "labels" as the batch has them where they are no tensor.
    """

    context: PassContext
    unit0: int
    ids: list[str]
    origin: Origin
    arrays: dict[str, Any]
    activation: str
    images: Any

    @property
    def key(self) -> Hashable:
        """Batches of a pass that hold arrays of the same types and widths go into one table."""
        looks = tuple(
            (name, value.dtype.str, value.shape[1:]) if isinstance(value, np.ndarray) else (name, type(value))
            for name, value in self.arrays.items()
        )
        return id(self.context), self.activation, looks

    def tables(self, group: Sequence[ClassifiedRows]) -> dict[str, pa.Table]:
        """`samples` and `vectors` of neighbouring batches, and `media` where the pass stores images.

        Raises:
            ValueError: one of several batches has labels of another kind; alone each tells what it has.
        """
        context = self.context
        before = dict(context.counts)
        try:
            return self._tables(group)
        except Exception:
            # The batches are counted one by one then.
            context.counts.clear()
            context.counts.update(before)
            raise

    def _tables(self, group: Sequence[ClassifiedRows]) -> dict[str, pa.Table]:
        context, n = self.context, sum(rows.origin.n for rows in group)
        arrays = {name: _joined([rows.arrays[name] for rows in group]) for name in self.arrays}
        labels = normalise_labels(arrays.pop("labels"), n, context.n_class)
        if labels.problem and len(group) > 1:
            raise ValueError(labels.problem)
        if labels.problem:
            context.guard.tell_once("labels", f"Recorded without labels: {labels.problem}.")
        context.count("labels out of range", labels.out_of_range)
        context.count(UNLABELLED, int((~labels.valid).sum()))
        logits = class_logits(arrays["logits"], self.activation, sigmoid=context.sigmoid)
        units = np.concatenate([np.arange(rows.unit0, rows.unit0 + rows.origin.n) for rows in group])
        own = own_columns(units, context.rank, [one for rows in group for one in rows.ids])
        values = {"logits": logits, **self._features(arrays, n)}
        vectors, overflow = vector_columns(context, values, n, half)
        samples = sample_columns(context, own, [rows.origin for rows in group])
        samples |= _answers(context, logits, labels, [rows.origin.n for rows in group])
        samples["overflow"] = pa.array(overflow)
        made = {
            "samples": table_of(samples, context.samples, n),
            "vectors": table_of({**own, **vectors}, context.vectors, n),
        }
        if context.media is not None:
            made["media"] = pa.concat_tables([rows._media() for rows in group])  # noqa: SLF001 - its own kind
        return made

    def _features(self, arrays: Mapping[str, npt.NDArray[Any]], n: int) -> dict[str, npt.NDArray[np.float32]]:
        """The features of the pass that these batches have."""
        found = {}
        for rule in self.context.rules:
            raw = arrays.get("feature:" + rule.alias)
            if raw is None:
                self.context.count(f"feature {rule.alias} missing", n)
            else:
                found[rule.alias] = project(to_float32(raw))
        return found

    def _media(self) -> pa.Table:
        own = own_columns(np.arange(self.unit0, self.unit0 + self.origin.n), self.context.rank, self.ids)
        return media_table(own, self.images, self.context)


def _joined(values: Sequence[Any]) -> Any:
    """The values of neighbouring batches, which are of one kind."""
    if len(values) == 1 or values[0] is None:
        return values[0]
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    if isinstance(values[0], (list, tuple)):
        return [one for value in values for one in value]
    raise ValueError(f"labels of type {type(values[0]).__name__} are read batch by batch")


def class_logits(raw: npt.NDArray[Any], activation: str, *, sigmoid: bool = False) -> npt.NDArray[np.float32]:
    """The logits (N, K) of what a model gave, by its `LogitsSource.activation`; `sigmoid`: class by class."""
    logits = to_float32(raw)
    if sigmoid and activation == "probabilities":
        return sigmoid_to_logits(logits)
    if activation in {"probabilities", "one probability"}:
        return probabilities_to_logits(logits if logits.shape[1] > 1 else np.hstack([1 - logits, logits]))
    return np.hstack([np.zeros_like(logits), logits]) if activation == "one logit" else logits


def _answers(
    context: PassContext, logits: npt.NDArray[np.float32], labels: Labels, counts: Sequence[int]
) -> Columns:
    """Label, prediction, confidence and loss of each row, of batches of so many rows."""
    scores = Scores(logits, labels, sigmoid=context.sigmoid)
    context.count("logits not finite", int((~scores.finite).sum()))
    columns = {
        "label": pa.array(labels.hard, mask=~labels.valid),
        "prediction": pa.array(scores.prediction, mask=~scores.finite),
        "confidence": pa.array(scores.confidence, mask=~scores.finite),
        "loss": pa.array(scores.loss, mask=~scores.has_loss),
        "nonfinite": pa.array(~scores.finite),
    }
    if labels.soft is not None:
        # A batch of one-hot rows alone has plain labels, whatever stands beside it.
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        mixed = labels.valid & (labels.soft != np.round(labels.soft)).any(axis=1)
        kept = labels.valid & np.repeat(np.logical_or.reduceat(mixed, starts), counts)
        rows = [row if ok else None for row, ok in zip(labels.soft, kept, strict=True)]
        columns["soft_label"] = pa.array(rows, pa.list_(pa.float32()))
    return columns
