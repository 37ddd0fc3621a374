"""Builders shared by the tests of the record store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.schema import samples_schema, vectors_schema
from mld_core.records.format.vectors import from_numpy
from mld_core.records.write.writer import Writer, WriterOptions

RUN = RunKey("model.a", "v1")
WIDTH = 16
ATTEMPT = "20260101T000000.000000Z-aaaaaa-000"


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    made = pa.array(values)
    if pa.types.is_dictionary(kind) and not pa.types.is_null(made.type):
        made = made.dictionary_encode()  # pyarrow 14 casts no text to a dictionary
    return made.cast(kind)


def make_tables(
    start: int,
    rows: int,
    *,
    rank: int = 0,
    ids: Sequence[str] | None = None,
    hashes: Sequence[str | None] | None = None,
    source: str = "dataset_index",
    batch_idx: int | None = None,
    step: int | None = None,
    repeats: Sequence[bool] | None = None,
    places: Sequence[str | None] | None = None,
    without: str = "",
    width: int = WIDTH,
    dtype: str = "float16",
    extra: dict[str, Any] | None = None,
) -> dict[str, pa.Table]:
    """Samples and vectors of one batch; vector values follow from the unit."""
    units = np.arange(start, start + rows)
    ids = [f"id-{unit}" for unit in units] if ids is None else list(ids)
    values: dict[str, Any] = {
        "unit": units,
        "rank_": np.full(rows, rank, dtype=np.int32),
        "input_id": ids,
        "id_source": [source] * rows,
        "input_hash": list(hashes) if hashes is not None else [None] * rows,
        "batch_idx": [start // max(1, rows) if batch_idx is None else batch_idx] * rows,
        "row": list(range(rows)),
        "global_step": [step] * rows,
        "mode": ["eval"] * rows,
        "sampler_repeat": [None] * rows if repeats is None else list(repeats),
        "loader_place": [None] * rows if places is None else list(places),
        "label": units % 3,
        "prediction": units % 2,
        "nonfinite": [False] * rows,
        "overflow": [False] * rows,
    }
    schema = samples_schema()
    arrays = [
        _column(values[item.name], item.type) if item.name in values else pa.nulls(rows, item.type)
        for item in schema
    ]
    samples = pa.Table.from_arrays(arrays, schema=schema)
    samples = samples.drop_columns([without]) if without else samples
    for name, column in (extra or {}).items():
        samples = samples.append_column(name, pa.array(column))
    stored = np.dtype(dtype)
    features = np.repeat((units % 2048)[:, None], width, axis=1).astype(stored)
    logits = np.repeat(units[:, None], 3, axis=1).astype(np.float32)
    vectors = pa.Table.from_arrays(
        [pa.array(units), pa.array(values["rank_"]), pa.array(ids), from_numpy(logits), from_numpy(features)],
        schema=vectors_schema("classification", 3, {"feat": (width, dtype)}),
    )
    return {"samples": samples, "vectors": vectors}


def put_batch(writer: Writer, handle: int, start: int, rows: int, **kwargs: Any) -> bool:
    """Put one batch built by make_tables."""
    tables = make_tables(start, rows, rank=kwargs.pop("rank", writer.rank), **kwargs)
    return writer.put(
        handle, lambda: tables, rows=rows, nbytes=sum(table.nbytes for table in tables.values())
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.ensure_run(RUN, {"task": "classification"})
    return made


@pytest.fixture
def run() -> RunKey:
    return RUN


@pytest.fixture
def tables() -> Callable[..., dict[str, pa.Table]]:
    return make_tables


@pytest.fixture
def put() -> Callable[..., bool]:
    return put_batch


@pytest.fixture
def new_writer(store: Store):
    """Make writers that are closed at the end of the test."""
    made: list[Writer] = []

    def make(attempt: str = ATTEMPT, **kwargs: Any) -> Writer:
        names = ("rank", "world_size", "on_problem")
        own = {name: kwargs.pop(name) for name in names if name in kwargs}
        options = WriterOptions(**{"fsync": False, **kwargs})
        made.append(Writer(store, RUN, attempt=attempt, options=options, **own))
        return made[-1]

    yield make
    for writer in made:
        writer.close(5)


@pytest.fixture
def write_pass(store: Store):
    """Write one pass whole: a list of batches, each (start, rows, kwargs)."""

    def write(
        key: PassKey,
        batches: Sequence[tuple[int, int, dict[str, Any]]],
        *,
        attempt: str = ATTEMPT,
        rank: int = 0,
        world_size: int = 1,
        seal: bool = True,
        continues: str | None = None,
        resume_step: int | None = None,
        run: RunKey = RUN,
        into: Store | None = None,
        **options: Any,
    ) -> Path:
        place = into or store
        place.ensure_run(run, {"task": "classification"})
        settings = WriterOptions(**{"fsync": False, **options})
        writer = Writer(place, run, attempt=attempt, rank=rank, world_size=world_size, options=settings)
        handle = writer.open(key, continues=continues, resume_step=resume_step)
        for start, rows, kwargs in batches:
            assert put_batch(writer, handle, start, rows, **kwargs)
        if seal:
            assert writer.wait([writer.seal(handle)], 10)
        account = writer.close(10)
        assert account.rows_lost == 0, account
        return place.rank_dir(run, key, attempt, rank)

    return write
