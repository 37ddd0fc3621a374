"""From one batch's tensors to the record tables of classification; all of it runs on the writer thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mld_core.records.format.schema import AdditionalField, additional_column
from mld_core.records.format.vectors import cast_vectors, from_numpy, nonfinite_rows
from mld_core.tracing.batch.batches import CONTENT_HASH, HeldInputs
from mld_core.tracing.batch.hashing import input_hash_of, to_hex
from mld_core.tracing.batch.identity import as_id_list
from mld_core.tracing.batch.labels import Labels, normalise_labels
from mld_core.tracing.capture.features import project
from mld_core.tracing.capture.heads import FeatureRule
from mld_core.tracing.capture.outputs import probabilities_to_logits
from mld_core.tracing.capture.staging import Staged, to_float32
from mld_core.tracing.guard import Guard
from mld_core.tracing.tables.media import media_arrays, media_columns


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Row-wise log-softmax of finite logits (N, K), in float64 by the shifted form.

    >>> np.exp(log_softmax(np.array([[0.0, 0.0]], np.float32))).tolist()
    [[0.5, 0.5]]
    """
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


class Scores:
    """Prediction, confidence and loss of logits (N, K) with their labels.

    Attributes:
        finite: (N,) bool, all K logits are finite; where not, prediction, confidence and loss do not count.
        prediction: (N,) int64, the first largest logit.
        confidence: (N,) float32, the largest softmax value.
        loss: (N,) float32, cross-entropy in nats of the stored logits (soft labels q: -sum q log p).
        has_loss: (N,) bool, finite and labelled.
    """

    def __init__(self, logits: npt.NDArray[np.float32], labels: Labels) -> None:
        n = len(logits)
        self.finite = ~nonfinite_rows(logits)
        log_p = log_softmax(np.where(self.finite[:, None], logits, np.float32(0)))
        self.prediction = log_p.argmax(axis=1)
        self.confidence = np.exp(log_p.max(axis=1)).astype(np.float32)
        self.has_loss = self.finite & labels.valid
        if labels.soft is not None:
            loss = -np.where(labels.soft > 0, labels.soft * log_p, 0.0).sum(axis=1)
        else:
            loss = -log_p[np.arange(n), np.where(labels.valid, labels.hard, 0)]
        self.loss = loss.astype(np.float32)


@dataclass(kw_only=True)
class PassState:
    """What all batches of a pass share; `counts` is filled on the writer thread and sealed with the pass."""

    rank: int
    mode: str
    store_hash: bool
    vector_dtype: str
    fields: tuple[AdditionalField, ...]
    guard: Guard
    media: pa.Schema | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, times: int = 1) -> None:
        """Adds to a counter of the pass."""
        if times:
            self.counts[what] = self.counts.get(what, 0) + times


@dataclass(kw_only=True)
class PassContext(PassState):
    """What all batches of a classifier's pass share."""

    n_class: int
    samples: pa.Schema
    vectors: pa.Schema
    rules: tuple[FeatureRule, ...]


@dataclass
class BatchJob:
    """One batch on its way to the record tables: called once, on the writer thread."""

    context: PassContext
    unit0: int
    n: int
    staged: Staged
    names: list[str]
    labels: Any
    ids: Any
    id_source: str
    hash_from: HeldInputs | None
    user: Mapping[str, Any]
    activation: str
    batch_idx: int
    global_step: int | None
    images: Any = None

    def __call__(self) -> dict[str, pa.Table]:
        """Builds `samples` and `vectors` of this batch, and `media` where the pass stores images.

        Raises:
            ValueError: the batch can not be recorded; the writer counts its rows as lost with this reason.
        """
        arrays = dict(zip(self.names, self.staged.arrays(), strict=True))
        logits = to_float32(arrays["logits"])
        if self.activation == "probabilities":
            logits = probabilities_to_logits(logits)
        hashes = self._hashes(arrays)
        ids = self._ids(arrays, hashes)
        samples, own = self._own_columns(logits, arrays, ids, hashes)
        vectors, overflow = self._vectors(logits, arrays, own)
        samples["overflow"] = pa.array(overflow)
        for spec in self.context.fields:
            samples[spec.name] = additional_column(spec, self.user.get(spec.name), self.n)
        made = {
            "samples": table_of(samples, self.context.samples, self.n),
            "vectors": table_of(vectors, self.context.vectors, self.n),
        }
        if self.context.media is not None:
            images = arrays.get("images", self.images)
            pngs = media_columns(images, self.n, self.context.guard)
            made["media"] = table_of(media_arrays(own, pngs), self.context.media, self.n)
        self.images = None
        return made

    def _hashes(self, arrays: Mapping[str, npt.NDArray[Any]]) -> list[str] | None:
        values = arrays.get("input_hash")
        if values is None and self.hash_from is not None:
            if self.hash_from.changed():
                self.context.count("inputs changed in place before they were hashed", self.n)
            else:
                values = input_hash_of(self.hash_from.inputs, self.n)
        self.hash_from = None  # lets go of the inputs
        return None if values is None else to_hex(values)

    def _ids(self, arrays: Mapping[str, npt.NDArray[Any]], hashes: list[str] | None) -> list[str]:
        if self.id_source != CONTENT_HASH:
            ids = as_id_list(arrays.get("ids", self.ids))
            if len(ids) != self.n:
                raise ValueError(f"{len(ids)} ids for {self.n} samples; give one id per sample")
            return ids
        if hashes is None:
            raise ValueError(
                "no id could be made of the inputs' content (changed in place, or not divisible by sample); "
                "give id_fn"
            )
        return hashes

    def _own_columns(
        self,
        logits: npt.NDArray[np.float32],
        arrays: Mapping[str, npt.NDArray[Any]],
        ids: list[str],
        hashes: list[str] | None,
    ) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
        """Columns of `samples`, and those of them that `vectors` repeats."""
        context, n = self.context, self.n
        labels = normalise_labels(arrays.get("labels", self.labels), n, context.n_class)
        if labels.problem:
            context.guard.tell_once("labels", f"Recorded without labels: {labels.problem}.")
        context.count("labels out of range", labels.out_of_range)
        scores = Scores(logits, labels)
        context.count("logits not finite", int((~scores.finite).sum()))
        own = {
            "unit": pa.array(np.arange(self.unit0, self.unit0 + n, dtype=np.int64)),
            "rank_": pa.array(np.full(n, context.rank, np.int32)),
            "input_id": pa.array(ids, pa.string()),
        }
        columns = {
            **own,
            "id_source": constant(self.id_source, n),
            "batch_idx": pa.array(np.full(n, self.batch_idx, np.int32)),
            "row": pa.array(np.arange(n, dtype=np.int32)),
            "mode": constant(context.mode, n),
            "label": pa.array(labels.hard, mask=~labels.valid),
            "prediction": pa.array(scores.prediction, mask=~scores.finite),
            "confidence": pa.array(scores.confidence, mask=~scores.finite),
            "loss": pa.array(scores.loss, mask=~scores.has_loss),
            "nonfinite": pa.array(~scores.finite),
        }
        if self.global_step is not None:
            columns["global_step"] = pa.array(np.full(n, self.global_step, np.int64))
        if hashes is not None and context.store_hash:
            columns["input_hash"] = pa.array(hashes, pa.string())
        if labels.soft is not None:
            rows = [row if ok else None for row, ok in zip(labels.soft, labels.valid, strict=True)]
            columns["soft_label"] = pa.array(rows, pa.list_(pa.float32()))
        return columns, own

    def _vectors(
        self,
        logits: npt.NDArray[np.float32],
        arrays: Mapping[str, npt.NDArray[Any]],
        own: Mapping[str, pa.Array],
    ) -> tuple[dict[str, pa.Array], npt.NDArray[np.bool_]]:
        """Columns of `vectors`, and the rows in which a feature overflowed its stored type."""
        columns: dict[str, pa.Array] = {**own, "logits": from_numpy(logits)}
        overflow = np.zeros(self.n, np.bool_)
        for rule in self.context.rules:
            raw = arrays.get("feature:" + rule.alias)
            if raw is None:
                self.context.count(f"feature {rule.alias} missing", self.n)
                continue
            values, clipped = cast_vectors(project(to_float32(raw)), self.context.vector_dtype)
            overflow |= clipped
            self.context.count(f"feature {rule.alias} not finite", int(nonfinite_rows(values).sum()))
            columns[rule.alias] = from_numpy(values)
        self.context.count("features beyond float16", int(overflow.sum()))
        return columns, overflow


def constant(value: str, n: int) -> pa.DictionaryArray:
    """A dictionary column of n equal texts."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value]))


def table_of(columns: Mapping[str, pa.Array], schema: pa.Schema, n: int) -> pa.Table:
    """`columns` in the order of `schema`; what a batch does not have is null."""
    arrays = [columns[f.name] if f.name in columns else pa.nulls(n, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)
