"""A pass whose split is known only at its end (an evaluation of the Hugging Face Trainer), and one not wanted."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.schema import samples_schema
from mld_core.records.read.reader import select
from mld_core.records.write.writer import Writer, WriterOptions

RUN = RunKey("m", "v1")
ATTEMPT = "20260101T000000000000Zabcdef-000"


def rows(first: int, n: int) -> dict[str, pa.Table]:
    columns = {"unit": list(range(first, first + n)), "rank_": [0] * n, "batch_idx": [0] * n, "row": [0] * n}
    columns["input_id"] = [str(i) for i in columns["unit"]]
    schema = samples_schema("classification")
    arrays = [
        pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema
    ]
    return {"samples": pa.Table.from_arrays(arrays, schema=schema)}


def put(writer: Writer, handle: int, first: int, n: int) -> None:
    assert writer.put(handle, lambda: rows(first, n), rows=n, nbytes=100)


@pytest.mark.parametrize("n_parts", [0, 1, 3])
def test_sealed_under_another_key(tmp_path: Path, n_parts: int) -> None:
    store = Store(tmp_path)
    writer = Writer(store, RUN, attempt=ATTEMPT, options=WriterOptions())
    handle = writer.open(PassKey("val", 0, 0))
    for part in range(n_parts):
        put(writer, handle, 2 * part, 2)
        assert writer.flush(30)
    ticket = writer.seal(handle, key=PassKey("val/b", 0, 4))
    assert writer.wait([ticket], 30)
    account = writer.close()

    assert (account.rows_written, account.rows_lost) == (2 * n_parts, 0)
    assert not store.split_dir(RUN, "val").exists(), "the folder of the first name is gone"
    folder = store.rank_dir(RUN, PassKey("val/b", 0, 4), ATTEMPT, 0)
    assert json.loads((folder / "attempt.json").read_text())["dataset_type"] == "val/b"
    [found] = select(store, RUN, dataset_type="val/b", n_epoch=None)
    assert found.sealed
    assert (found.key.pass_no, found.n_rows) == (4, 2 * n_parts)


def test_the_first_name_is_free_again_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    writer = Writer(store, RUN, attempt=ATTEMPT, options=WriterOptions())
    for name in ("val/a", "val/b"):
        handle = writer.open(PassKey("val", 0, 0))
        put(writer, handle, 0, 3)
        writer.seal(handle, key=PassKey(name, 0, 0))
    account = writer.close()
    assert (account.rows_written, account.rows_lost) == (6, 0)
    assert {s.key.dataset_type: s.sealed for s in select(store, RUN, n_epoch=None)} == {
        "val/a": True,
        "val/b": True,
    }


def test_a_rename_that_fails_is_tried_again(tmp_path: Path) -> None:
    failed = []

    def refuse_once(step: str) -> None:
        if step == "seal:rename" and not failed:
            failed.append(step)
            raise OSError(5, "said by the test")

    store = Store(tmp_path)
    writer = Writer(store, RUN, attempt=ATTEMPT, options=WriterOptions(steps=refuse_once))
    handle = writer.open(PassKey("val", 0, 0))
    put(writer, handle, 0, 3)
    assert writer.wait([writer.seal(handle, key=PassKey("test", 0, 0))], 30)
    assert failed
    [found] = select(store, RUN, n_epoch=None)
    assert (found.key.dataset_type, found.sealed, found.n_rows) == ("test", True, 3)
    writer.close()


@pytest.mark.parametrize("flushed", [False, True])
def test_discard(tmp_path: Path, flushed: bool) -> None:
    store = Store(tmp_path)
    writer = Writer(store, RUN, attempt=ATTEMPT, options=WriterOptions())
    kept = writer.open(PassKey("train", 0, 0))
    unwanted = writer.open(PassKey("val", 0, 0))
    put(writer, kept, 0, 2)
    put(writer, unwanted, 0, 5)
    if flushed:
        assert writer.flush(30)
    writer.discard(unwanted)
    writer.seal(kept)
    account = writer.close()
    assert account.rows_lost == 0
    assert not store.split_dir(RUN, "val").exists()
    assert [s.key.dataset_type for s in select(store, RUN, n_epoch=None)] == ["train"]
