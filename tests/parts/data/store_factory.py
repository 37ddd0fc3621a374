"""Writes synthetic classification runs with the real writer, for the tests of the evaluation and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.schema import parse_fields, samples_schema, vectors_schema
from mld_core.records.format.vectors import from_numpy
from mld_core.records.write.writer import Writer, WriterOptions


@dataclass
class Data:
    """The rows of one pass as plain arrays, and what the writer is told about them."""

    logits: np.ndarray
    labels: np.ndarray
    ids: list[str]
    hashes: list[str | None]
    fields: dict[str, list[Any]] = field(default_factory=dict)
    soft: list[list[float] | None] | None = None
    features: np.ndarray | None = None
    source: str = "batch"

    @property
    def rows(self) -> int:
        return len(self.labels)


def make_data(rows: int, classes: int = 5, *, seed: int = 0, strength: float = 2.0, start: int = 0) -> Data:
    """Random logits whose true class is raised by `strength`; half of the rows are "day", half "night"."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)).astype(np.float32)
    logits[np.arange(rows), labels] += strength
    ids = [f"id{number:06d}" for number in range(start, start + rows)]
    hashes: list[str | None] = [f"{number:032x}" for number in range(start, start + rows)]
    when = ["day" if number % 2 else "night" for number in range(rows)]
    features = rng.normal(size=(rows, 8)).astype(np.float32)
    return Data(logits, labels, ids, hashes, {"weather": when}, features=features)


def text_fields(data: Data) -> list[Any]:
    """The user's columns of some rows, all of them texts."""
    return parse_fields([{"name": name, "type": "str"} for name in data.fields])


def tables(
    data: Data, part: slice, *, first_unit: int, rank: int, with_vectors: bool = True
) -> dict[str, pa.Table]:
    """The families of some rows, as the tracer would build them."""
    logits, labels = data.logits[part], data.labels[part]
    rows = len(labels)
    finite = np.isfinite(logits).all(axis=1)
    wide = np.where(finite[:, None], logits, 0.0).astype(np.float64)
    p = np.exp(wide - wide.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    soft = data.soft[part] if data.soft is not None else [None] * rows
    columns: dict[str, Any] = {
        "unit": np.arange(first_unit, first_unit + rows),
        "rank_": np.full(rows, rank),
        "input_id": data.ids[part],
        "id_source": [data.source] * rows,
        "input_hash": data.hashes[part],
        "batch_idx": np.full(rows, first_unit),
        "row": np.arange(rows),
        "global_step": np.full(rows, first_unit),
        "mode": ["eval"] * rows,
        "label": [int(label) if label >= -100 else None for label in labels],
        "soft_label": soft,
        "prediction": pa.array(wide.argmax(axis=1), mask=~finite),
        "confidence": pa.array(p.max(axis=1), pa.float32(), mask=~finite),
        "loss": pa.nulls(rows, pa.float32()),
        "nonfinite": ~finite,
        "overflow": np.zeros(rows, bool),
        "sampler_repeat": pa.nulls(rows, pa.bool_()),
        "loader_place": pa.nulls(rows, pa.string()),
        **{name: values[part] for name, values in data.fields.items()},
    }
    schema = samples_schema("classification", text_fields(data))
    made = [_column(columns[item.name], item.type) for item in schema]
    found = {"samples": pa.Table.from_arrays(made, schema=schema)}
    if with_vectors:
        features = {"pool": (data.features.shape[1], "float16")} if data.features is not None else {}
        vector_schema = vectors_schema("classification", logits.shape[1], features)
        arrays = [found["samples"][name].combine_chunks() for name in ("unit", "rank_", "input_id")]
        arrays.append(from_numpy(np.ascontiguousarray(logits, np.float32)))
        if data.features is not None:
            arrays.append(from_numpy(data.features[part].astype(np.float16)))
        found["vectors"] = pa.Table.from_arrays(arrays, schema=vector_schema)
    return found


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, pa.string()).dictionary_encode().cast(kind)
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return array.cast(kind)


class StoreFactory:
    """A store in a folder, and runs in it."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self._launches = 0

    def run(self, model: str = "net", version: str = "v1", **info: Any) -> RunKey:
        """Create a run."""
        run = RunKey(model, version)
        self.store.ensure_run(run, {"task": "classification", "n_class": 5, **info})
        return run

    def add_pass(
        self,
        run: RunKey,
        dataset: str,
        data: Data,
        *,
        n_epoch: int | None = 0,
        pass_no: int = 0,
        world_size: int = 1,
        sealing: tuple[int, ...] | None = None,
        batch: int = 64,
        with_vectors: bool = True,
        meta: dict[str, Any] | None = None,
        roll_mb: float = 64,
    ) -> None:
        """Write one pass; the rows are dealt to the ranks in turn, only `sealing` ranks seal it."""
        self._launches += 1
        attempt = f"20261121T00{self._launches:04d}-{'ab' * 3}-000"
        per_rank = np.array_split(np.arange(data.rows), world_size)
        for rank in range(world_size):
            writer = Writer(
                self.store,
                run,
                attempt=attempt,
                rank=rank,
                world_size=world_size,
                options=WriterOptions(fsync=False, roll_mb=roll_mb),
                on_problem=_refuse,
            )
            handle = writer.open(
                PassKey(dataset, n_epoch, pass_no), meta={"activation": "logits", **(meta or {})}
            )
            mine = per_rank[rank]
            for start in range(0, len(mine), batch):
                rows = mine[start : start + batch]
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                made = tables(data, part, first_unit=start, rank=rank, with_vectors=with_vectors)
                assert writer.put(
                    handle, lambda made=made: made, rows=len(rows), nbytes=made["samples"].nbytes
                )
            if sealing is None or rank in sealing:
                writer.seal(handle).result(timeout=30)
            else:
                writer.abandon(handle)
            account = writer.close(30)
            assert account.rows_lost == 0, account.reasons

    def standard(
        self, model: str = "net", version: str = "v1", *, seed: int = 0, strength: float = 2.0
    ) -> RunKey:
        """A run with two epochs of train and val, and a test split."""
        run = self.run(model, version, class_names=["cat", "dog", "cow", "hen", "pig"])
        for epoch in (0, 1):
            better = strength + epoch * 0.5
            self.add_pass(run, "train", make_data(300, seed=seed + epoch, strength=better), n_epoch=epoch)
            val = make_data(200, seed=seed + 10, strength=better, start=1000)
            self.add_pass(run, "val", val, n_epoch=epoch)
        self.add_pass(
            run, "test", make_data(150, seed=seed + 20, strength=strength, start=2000), n_epoch=None
        )
        return run


def _refuse(key: str, message: str) -> None:
    raise AssertionError(f"{key}: {message}")
