"""`scan`: what `load` gives, as a stream; and reading beside a living run."""

from __future__ import annotations

import threading
import time

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from ml_debugger import records
from mld_core.records.format.attempts import list_attempts
from mld_core.records.format.layout import PassKey
from mld_core.records.read.reader import load, scan, select
from mld_core.records.write.retention import drop_features

KEYS = [PassKey("train", 0), PassKey("train", 1), PassKey("val", 1), PassKey("val", None)]


@pytest.fixture
def written(store, run, write_pass):
    """Two splits; a sampler's padding in val, features that only the later passes have, another column."""
    write_pass(KEYS[0], [(0, 30, {}), (30, 30, {})])
    write_pass(KEYS[1], [(0, 30, {"extra": {"weather": ["dry"] * 30}})])
    write_pass(KEYS[2], [(0, 10, {}), (10, 10, {"ids": [f"id-{k}" for k in range(10)]})])
    write_pass(KEYS[3], [(0, 5, {})], seal=False)
    return {"model_name": run.model_name, "version_name": run.version_name, "store": store}


@pytest.mark.parametrize("table", ["samples", "vectors"])
@pytest.mark.parametrize("which", [{}, {"dataset_type": "val"}, {"n_epoch": "latest"}, {"n_epoch": 1}])
@pytest.mark.parametrize("batch_rows", [7, 65536])
def test_a_stream_holds_what_load_holds(written, table, which, batch_rows):
    whole = load(table=table, **written, **which)
    stream = scan(table=table, **written, **which, batch_rows=batch_rows)
    assert isinstance(stream, pa.RecordBatchReader)
    assert stream.schema == whole.schema
    batches = list(stream)
    assert all(0 < batch.num_rows <= batch_rows for batch in batches)
    found = pa.Table.from_batches(batches, stream.schema)
    assert found.to_pylist() == whole.to_pylist()
    assert found.num_rows == {"val": 15, "latest": 40, 1: 40}.get(next(iter(which.values()), None), 105)
    if table == "vectors":
        assert found.schema.field("feat").type == pa.list_(pa.float32(), 16)


def test_columns_in_the_order_asked_for(written):
    stream = scan(**written, columns=["weather", "input_id", "n_epoch"])
    assert stream.schema.names == ["weather", "input_id", "n_epoch"]
    rows = stream.read_all()
    assert rows == load(**written).select(["weather", "input_id", "n_epoch"])
    assert rows["weather"].null_count == 75
    only = scan(**written, columns=["pass_no"]).read_all()
    assert (only.schema.names, only.num_rows) == (["pass_no"], 105)
    with pytest.raises(KeyError, match="samples has no column"):
        scan(**written, columns=["wheather"])
    with pytest.raises(ValueError, match="no records of model"):
        scan("nobody", "v1", store=written["store"])
    assert records.scan is scan


def test_nothing_recorded_is_an_empty_stream(store, run):
    stream = scan(run.model_name, run.version_name, "vectors", store=store)
    assert stream.schema.names[:3] == ["dataset_type", "n_epoch", "pass_no"]
    assert stream.read_all().num_rows == 0


def test_duckdb_takes_the_stream(written):
    rows = scan(**written, table="vectors", columns=["dataset_type", "feat"])  # noqa: F841 - DuckDB sees it
    found = duckdb.sql(
        "SELECT dataset_type, count(*), sum(feat[1]) FROM rows GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert [(split, count) for split, count, _ in found] == [("train", 90), ("val", 15)]
    assert found[0][2] == sum(range(60)) + sum(range(30))


def test_memory_does_not_grow_with_the_run(store, run, write_pass):
    for epoch in range(8):
        write_pass(PassKey("train", epoch), [(0, 4000, {"width": 512})], fsync=False)
    before = pa.total_allocated_bytes()
    most, total = 0, 0
    for batch in scan(run.model_name, run.version_name, "vectors", store=store, batch_rows=500):
        most = max(most, pa.total_allocated_bytes() - before)
        total += batch.nbytes
    assert total > 8 * 4000 * 512 * 4
    assert most < total / 5, f"{most / 1e6:.1f} MB held of {total / 1e6:.1f}"


# -- beside a living run ---------------------------------------------------------------------------------------


def strip(store, run, key):
    (attempt,) = list_attempts(store, run, key)
    for rank in attempt.ranks:
        assert drop_features(rank) > 0


@pytest.mark.parametrize("started", [False, True])
def test_vectors_dropped_meanwhile_are_never_read_as_null(store, run, write_pass, started):
    write_pass(KEYS[0], [(0, 40, {}), (40, 40, {})], roll_mb=0.001)
    (item,) = select(store, run)
    reading = item.batches("vectors", batch_rows=10)
    first = next(reading) if started else None
    strip(store, run, KEYS[0])
    with pytest.raises(FileNotFoundError, match="feature vectors were dropped since this was selected"):
        list(reading) if started else item.table("vectors")
    assert first is None or first["feat"].null_count == 0
    assert item.table("vectors", ["unit", "logits"]).num_rows == 80, "logits and scalars stay"
    assert item.table("samples").num_rows == 80
    again = select(store, run)[0].table("vectors")
    assert (again.schema.names[-1], again.num_rows) == ("logits", 80)


@pytest.fixture
def meanwhile(monkeypatch):
    """Lets something happen right after the first selection of a read; counts the selections."""

    def happens(event):
        real, calls = select, []

        def interrupted(*args, **kwargs):
            found = real(*args, **kwargs)
            calls.append(1)
            if len(calls) == 1:
                event()
            return found

        monkeypatch.setattr("mld_core.records.read.reader.select", interrupted)
        return calls

    return happens


def test_a_pass_whose_features_go_is_read_without_them(store, run, write_pass, meanwhile):
    for epoch in range(3):
        write_pass(PassKey("train", epoch), [(0, 20, {})])
    meanwhile(lambda: strip(store, run, PassKey("train", 1)))
    rows = load(run.model_name, run.version_name, "vectors", store=store)
    has = np.asarray(rows["feat"].is_valid())
    assert has.tolist() == [True] * 20 + [False] * 20 + [True] * 20
    assert rows["logits"].null_count == 0


def test_load_looks_again_for_a_pass_that_was_moved(store, run, write_pass, meanwhile):
    folder = write_pass(PassKey("val", 7), [(0, 20, {})])
    epoch = folder.parents[2]
    calls = meanwhile(lambda: epoch.rename(epoch.with_name("epoch-8")))
    rows = load(run.model_name, run.version_name, "vectors", store=store)
    assert len(calls) == 2
    assert (rows.num_rows, rows["n_epoch"].unique().to_pylist()) == (20, [8])


def test_load_of_vectors_beside_a_living_writer(store, run, new_writer, put):
    """Every row is there once and whole; an epoch has its features or none of them."""
    done = threading.Event()

    def train():
        writer = new_writer(roll_mb=0.02, roll_seconds=0.05, keep_vectors=2)
        for epoch in range(10):
            for split in ("train", "val"):
                handle = writer.open(PassKey(split, epoch))
                for start in range(0, 400, 20):
                    put(writer, handle, start, 20)
                    time.sleep(0.005)
                assert writer.wait([writer.seal(handle)], 30)
        done.set()

    thread = threading.Thread(target=train)
    thread.start()
    reads = 0
    while not done.is_set():
        rows = load(run.model_name, run.version_name, "vectors", store=store)
        reads += 1
        if not rows.num_rows:
            continue
        place = rows.select(["dataset_type", "n_epoch"]).to_pylist()
        units = np.asarray(rows["unit"])
        has = (
            np.asarray(rows["feat"].is_valid()) if "feat" in rows.column_names else np.zeros(len(units), bool)
        )
        for key in {tuple(one.values()) for one in place}:
            own = np.array([tuple(one.values()) == key for one in place])
            assert units[own].tolist() == list(range(own.sum()))
            assert has[own].all() or not has[own].any()
    thread.join()
    assert reads > 1
