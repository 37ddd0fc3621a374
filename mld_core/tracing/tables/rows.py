"""From batches' tensors to the record tables of classification; all of it runs on the writer thread.

A batch is brought into arrays by itself (`BatchJob`), so that what is wrong with it costs only its own rows;
neighbouring batches then become tables together (`ClassifiedRows`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

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

UNLABELLED: Final = "rows without a label"


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Row-wise log-softmax of finite logits (N, K), in float64 by the shifted form.

    >>> np.exp(log_softmax(np.array([[0.0, 0.0]], np.float32))).tolist()
    [[0.5, 0.5]]
    """
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


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
        z = np.where(self.finite[:, None], logits, np.float32(0))
        log_p = log_sigmoid(z) if sigmoid else log_softmax(z)
        self.prediction = z.argmax(axis=1)
        self.confidence = np.exp(log_p.max(axis=1)).astype(np.float32)
        self.has_loss = self.finite & labels.valid
        truth = np.where(labels.valid, labels.hard, 0)
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
    kind: str = ""

    @property
    def hurry(self) -> bool:
        """Whether the rows' ids depend on inputs that a loader may write to again."""
        held = self.hash_from
        return held is not None and held.held_bytes > 0 and self.id_source == CONTENT_HASH

    def _hashes(self, context: PassState, n: int, on_device: Any) -> list[str] | None:
        """The content's hash of each unit, None where there is none."""
        fingerprint, self.hash_from = self.hash_from, None
        self.kind = KIND if fingerprint is None else fingerprint.kind
        if fingerprint is None:
            return None if on_device is None or len(on_device) != n else to_hex(on_device)
        hashes = fingerprint.read(n)
        if fingerprint.missing:
            context.count(fingerprint.missing, n)
        return None if hashes is None else to_hex(hashes)

    def _of_a_kind(self, context: PassState, hashes: list[str] | None, n: int) -> list[str] | None:
        """What is stored: hashes of the pass's kind, which compare with one another."""
        if hashes is None or self.kind == context.hash_kind or not context.store_hash:
            return hashes
        context.count("inputs hashed in another way than the pass's first", n)
        return None

    def _origin(self, context: PassState, n: int, hashes: list[str] | None) -> Origin:
        """Where the rows came from, for their table."""
        return Origin(
            n=n,
            id_source=self.id_source,
            batch_idx=self.batch_idx,
            global_step=self.global_step,
            hashes=self._of_a_kind(context, hashes, n),
            user=user_columns(context, self.user, n),
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
        """Brings what the batch holds into arrays.

        Raises:
            ValueError: the batch can not be recorded; the writer counts its rows as lost with this reason.
        """
        context, n = self.context, self.n
        arrays = dict(zip(self.names, self.staged.arrays(), strict=True))
        logits = to_float32(arrays["logits"])
        if self.activation == "probabilities" and context.sigmoid:
            logits = sigmoid_to_logits(logits)
        elif self.activation in {"probabilities", "one probability"}:
            logits = probabilities_to_logits(
                logits if logits.shape[1] > 1 else np.hstack([1 - logits, logits])
            )
        elif self.activation == "one logit":
            logits = np.hstack([np.zeros_like(logits), logits])
        hashes = self._hashes(context, n, arrays.get("input_hash"))
        from_content = self.id_source == CONTENT_HASH
        ids = self._known(hashes) if from_content else self._given_ids(arrays.get("ids", self.ids), n)
        labels = normalise_labels(arrays.get("labels", self.labels), n, context.n_class)
        origin = self._origin(context, n, hashes)
        if labels.problem:
            context.guard.tell_once("labels", f"Recorded without labels: {labels.problem}.")
        context.count("labels out of range", labels.out_of_range)
        context.count(UNLABELLED, int((~labels.valid).sum()))
        images, self.images = arrays.get("images", self.images), None
        vectors = {"logits": logits, **self._features(arrays)}
        return ClassifiedRows(context, self.unit0, ids, origin, vectors, labels, images)

    def _features(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """The features of the pass that this batch has."""
        found = {}
        for rule in self.context.rules:
            raw = arrays.get("feature:" + rule.alias)
            if raw is None:
                self.context.count(f"feature {rule.alias} missing", self.n)
            else:
                found[rule.alias] = project(to_float32(raw))
        return found


@dataclass
class ClassifiedRows:
    """The rows of one batch as arrays; on the writer thread they become tables with those beside them."""

    context: PassContext
    unit0: int
    ids: list[str]
    origin: Origin
    vectors: dict[str, npt.NDArray[np.float32]]
    labels: Labels
    images: Any

    @property
    def key(self) -> Hashable:
        """Batches of a pass with the same features, and soft labels or none, go into one table."""
        return id(self.context), tuple(self.vectors), self.labels.soft is None

    def tables(self, group: Sequence[ClassifiedRows]) -> dict[str, pa.Table]:
        """`samples` and `vectors` of neighbouring batches, and `media` where the pass stores images."""
        context = self.context
        units = np.concatenate([np.arange(rows.unit0, rows.unit0 + rows.origin.n) for rows in group])
        own = own_columns(units, context.rank, [one for rows in group for one in rows.ids])
        joined = {name: np.concatenate([rows.vectors[name] for rows in group]) for name in self.vectors}
        vectors, overflow = vector_columns(context, joined, len(units), half)
        samples = sample_columns(context, own, [rows.origin for rows in group])
        samples |= _answers(context, joined["logits"], [rows.labels for rows in group])
        samples["overflow"] = pa.array(overflow)
        made = {
            "samples": table_of(samples, context.samples, len(units)),
            "vectors": table_of({**own, **vectors}, context.vectors, len(units)),
        }
        if context.media is not None:
            made["media"] = pa.concat_tables([rows._media() for rows in group])  # noqa: SLF001 - its own kind
        return made

    def _media(self) -> pa.Table:
        own = own_columns(np.arange(self.unit0, self.unit0 + self.origin.n), self.context.rank, self.ids)
        return media_table(own, self.images, self.context)


def _answers(context: PassContext, logits: npt.NDArray[np.float32], given: Sequence[Labels]) -> Columns:
    """Label, prediction, confidence and loss of each row."""
    soft = [labels.soft for labels in given if labels.soft is not None]
    labels = Labels(
        np.concatenate([labels.hard for labels in given]),
        np.concatenate([labels.valid for labels in given]),
        np.concatenate(soft) if soft else None,
    )
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
        rows = [row if ok else None for row, ok in zip(labels.soft, labels.valid, strict=True)]
        columns["soft_label"] = pa.array(rows, pa.list_(pa.float32()))
    return columns
