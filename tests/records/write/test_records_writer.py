"""The background writer: what is put is read back; passes, ranks, attempts, threads, options."""

from __future__ import annotations

import os
import pickle
import threading
import time

import pytest
from writer_parts import KEY, units, wait_until

from mld_core.records.format.attempts import list_attempts
from mld_core.records.format.layout import PassKey
from mld_core.records.format.manifest import read_attempt, read_seal
from mld_core.records.read.reader import select
from mld_core.records.write.writer import Writer, WriterOptions


def test_what_is_put_is_read_back(store, run, new_writer, put):
    writer = new_writer(codec="zstd")
    handle = writer.open(KEY, meta={"activation": "logits"})
    for start in range(0, 100, 10):
        assert put(writer, handle, start, 10, step=start)
    ticket = writer.seal(handle, meta={"end": 1})
    assert writer.wait([ticket], 10)
    manifest = ticket.result()
    account = writer.close(10)
    assert (account.rows_put, account.rows_written, account.rows_lost) == (100, 100, 0)
    assert account.bytes_written > 0
    assert account.thread_cpu_seconds > 0
    (selection,) = select(store, run)
    assert selection.sealed
    assert selection.meta == {"activation": "logits", "end": 1}
    assert selection.table()["unit"].to_pylist() == list(range(100))
    assert manifest.rows == {"samples": 100, "vectors": 100}
    assert manifest.widths["feat"] == {"shape": [16], "dtype": "float16"}
    assert read_seal(store.rank_dir(run, KEY, writer.attempt, 0)) == manifest


@pytest.mark.parametrize("codec", ["zstd", "lz4", "snappy", "none"])
def test_codecs(store, run, new_writer, put, codec):
    writer = new_writer(codec=codec)
    handle = writer.open(KEY)
    put(writer, handle, 0, 10)
    assert writer.wait([writer.seal(handle)], 10)
    assert units(store, run) == [list(range(10))]


def test_a_part_rolls_by_size_by_time_and_when_a_schema_changes(store, run, new_writer, put, tables):
    writer = new_writer(roll_mb=0.01, roll_seconds=600)
    handle = writer.open(KEY)
    size = sum(table.nbytes for table in tables(0, 100).values())
    for start in range(0, 1000, 100):
        put(writer, handle, start, 100)
    wait_until(lambda: writer.account().parts >= 10 * size // (2 * 10486))
    slow = new_writer("20260102T000000.000000Z-bbbbbb-000", roll_seconds=0.2)
    handle = slow.open(PassKey("val", 4))
    put(slow, handle, 0, 10)
    wait_until(lambda: slow.account().rows_written == 10)  # nothing else was put: the thread woke by itself
    other = new_writer("20260103T000000.000000Z-cccccc-000", roll_seconds=600)
    handle = other.open(PassKey("val", 5))
    put(other, handle, 0, 10)
    put(other, handle, 10, 10, extra={"weather": ["dry"] * 10})
    wait_until(lambda: other.account().rows_written == 10)
    assert other.wait([other.seal(handle)], 10)
    table = select(store, run, n_epoch=5)[0].table()
    assert table["weather"].to_pylist() == [None] * 10 + ["dry"] * 10


def test_small_parts_are_joined_when_the_pass_is_sealed(store, run, new_writer, put):
    writer = new_writer()
    handle = writer.open(KEY)
    for start in range(0, 60, 10):
        put(writer, handle, start, 10)
        assert writer.flush(10)
    folder = store.rank_dir(run, KEY, writer.attempt, 0)
    assert sum(path.name.startswith("part-") for path in folder.iterdir()) == 6
    live = select(store, run)[0]
    assert writer.wait([writer.seal(handle)], 10)
    assert sorted(path.name for path in folder.iterdir()) == ["attempt.json", "merged-000000", "seal.json"]
    assert units(store, run) == [list(range(60))]
    # A reader that looked before the parts were joined still reads the rows it saw, once.
    assert live.table("vectors").num_rows == 60


def test_a_reader_of_a_live_pass_sees_one_state_of_it(store, run, new_writer, put):
    writer = new_writer()
    handle = writer.open(PassKey("train", 0))
    for start in range(0, 30, 10):
        put(writer, handle, start, 10)
        writer.flush(10)
    live = select(store, run)[0]
    reading = live.batches("samples", batch_rows=7)
    first = next(reading)
    put(writer, handle, 30, 10)
    assert writer.wait([writer.seal(handle)], 10)
    rest = [unit for batch in reading for unit in batch["unit"].to_pylist()]
    assert first["unit"].to_pylist() + rest == list(range(30))
    assert live.table("vectors")["unit"].to_pylist() == list(range(30))
    assert units(store, run) == [list(range(40))]


def test_full_size_parts_are_not_written_twice(store, run, new_writer, put):
    writer = new_writer(roll_mb=0.02, roll_seconds=600)
    handle = writer.open(KEY)
    for start in range(0, 2000, 100):
        put(writer, handle, start, 100)
    assert writer.wait([writer.seal(handle)], 10)
    names = [part.name for part in read_seal(store.rank_dir(run, KEY, writer.attempt, 0)).parts]
    assert sum(name.startswith("part-") for name in names) >= len(names) - 1
    assert units(store, run) == [list(range(2000))]


def test_several_passes_are_open_at_once(store, run, new_writer, put):
    writer = new_writer()
    handles = {epoch: writer.open(PassKey("train", epoch)) for epoch in range(4)}
    for start in range(0, 50, 10):
        for handle in handles.values():
            put(writer, handle, start, 10)
    assert writer.wait([writer.seal(handle) for handle in handles.values()], 10)
    assert units(store, run, n_epoch=None) == [list(range(50))] * 4


def test_many_open_passes_together_do_not_fill_the_queue(store, run, new_writer, put):
    writer = new_writer(queue_mb=0.2, roll_mb=0.1, roll_seconds=600, block_deadline_s=5)
    handles = [writer.open(PassKey("train", epoch)) for epoch in range(12)]
    for start in range(0, 500, 100):
        for handle in handles:
            assert put(writer, handle, start, 100)
    assert writer.wait([writer.seal(handle) for handle in handles], 20)
    assert writer.close(10).rows_lost == 0


def test_a_pass_without_rows_is_sealed_and_read(store, run, new_writer):
    writer = new_writer()
    assert writer.wait([writer.seal(writer.open(KEY))], 10)
    (selection,) = select(store, run)
    assert selection.sealed
    assert selection.n_rows == 0
    assert selection.table("samples").num_rows == 0
    assert "input_id" in selection.table("vectors").column_names
    assert list(selection.batches("samples")) == []


def test_batches_without_rows_make_no_part(store, run, new_writer, put):
    writer = new_writer()
    handle = writer.open(KEY)
    assert put(writer, handle, 0, 0)
    assert writer.flush(10)
    assert writer.wait([writer.seal(handle)], 10)
    assert writer.account().parts == 0


def test_ranks_seal_on_their_own_and_the_pass_when_all_have(store, run, new_writer, put):
    writers = [new_writer(rank=rank, world_size=3) for rank in range(3)]
    handles = [writer.open(KEY) for writer in writers]
    for rank, (writer, handle) in enumerate(zip(writers, handles, strict=True)):
        put(writer, handle, 0, 10 + rank, ids=[f"{rank}-{row}" for row in range(10 + rank)])
    for rank in (2, 0):
        assert writers[rank].wait([writers[rank].seal(handles[rank])], 10)
        (selection,) = select(store, run)
        assert not selection.sealed
    assert selection.missing_ranks == [1]
    assert selection.n_rows == 22  # rank 1 has nothing on disk yet
    assert writers[1].wait([writers[1].seal(handles[1])], 10)
    (selection,) = select(store, run)
    assert selection.sealed
    assert selection.table()["rank_"].to_pylist() == [0] * 10 + [1] * 11 + [2] * 12


def test_an_abandoned_pass_keeps_its_rows_and_stays_unsealed(store, run, new_writer, put):
    writer = new_writer()
    handle = writer.open(KEY)
    put(writer, handle, 0, 10)
    writer.abandon(handle)
    assert not put(writer, handle, 10, 10)
    assert writer.flush(10)
    (selection,) = select(store, run)
    assert (selection.sealed, selection.n_rows) == (False, 10)
    assert not writer.wait([writer.seal(handle)], 1)


def test_a_discarded_pass_leaves_nothing(store, run, new_writer, put):
    writer = new_writer()
    handle = writer.open(KEY)
    put(writer, handle, 0, 10)
    assert writer.flush(10)
    put(writer, handle, 10, 10)
    writer.discard(handle)
    account = writer.close(10)
    assert account.rows_lost == 0
    assert select(store, run) == []
    assert not store.split_dir(run, "val").exists()


def test_a_pass_may_get_its_name_when_it_is_sealed(store, run, new_writer, put):
    writer = new_writer()
    handle = writer.open(KEY)
    put(writer, handle, 0, 10)
    assert writer.flush(10)
    live = select(store, run)[0]
    assert writer.wait([writer.seal(handle, key=PassKey("val", 4, 1))], 10)
    (selection,) = select(store, run, n_epoch=None)
    assert (selection.key, selection.n_rows, selection.sealed) == (PassKey("val", 4, 1), 10, True)
    assert read_attempt(store.rank_dir(run, selection.key, writer.attempt, 0)).n_epoch == 4
    with pytest.raises(FileNotFoundError):
        live.table()


def test_a_pass_never_takes_the_place_of_another(store, run, new_writer, put):
    told = {}
    writer = new_writer(on_problem=told.__setitem__)
    first, second = writer.open(KEY), writer.open(PassKey("val", 9))
    put(writer, first, 0, 10)
    put(writer, second, 50, 10)
    assert writer.wait([writer.seal(first)], 10)
    assert not writer.wait([writer.seal(second, key=KEY)], 10)
    assert "give each its own rank" in told["rank taken"]
    assert units(store, run, n_epoch=3) == [list(range(10))]


def test_after_close_everything_is_refused_politely(new_writer, put):
    writer = new_writer()
    handle = writer.open(KEY)
    put(writer, handle, 0, 10)
    assert writer.close(10).rows_written == 10
    assert not put(writer, handle, 10, 10)
    assert not put(writer, writer.open(KEY), 10, 10)
    assert writer.flush(1)
    assert not writer.wait([writer.seal(handle)], 1)
    assert writer.account().reasons == {"the writer is closed": 20}


def test_a_batch_larger_than_the_queue_is_taken_when_it_is_empty(store, run, new_writer, put):
    writer = new_writer(queue_mb=0.001)
    handle = writer.open(KEY)
    assert put(writer, handle, 0, 500)
    assert put(writer, handle, 500, 500)
    assert writer.wait([writer.seal(handle)], 10)
    assert units(store, run) == [list(range(1000))]


def test_the_same_rank_of_the_same_attempt_twice_is_told(store, run, new_writer, put):
    told = {}
    first, second = new_writer(), new_writer(on_problem=told.__setitem__)
    put(first, first.open(KEY), 0, 10)
    assert first.flush(10)
    handle = second.open(KEY)
    put(second, handle, 100, 10)
    assert not second.wait([second.seal(handle)], 10)
    assert second.close(5).rows_lost == 10
    assert f"process {os.getpid()}" in told["rank taken"]
    assert units(store, run) == [list(range(10))]


def test_two_processes_under_the_same_names_are_two_attempts(store, run, new_writer, put):
    names = ["20260101T000000.000000Z-aaaaaa-000", "20260101T000000.000001Z-bbbbbb-000"]
    writers = [new_writer(name) for name in names]
    handles = [writer.open(KEY) for writer in writers]
    for start in range(0, 50, 10):
        for writer, handle in zip(writers, handles, strict=True):
            put(writer, handle, start, 10)
    for writer, handle in reversed(list(zip(writers, handles, strict=True))):
        assert writer.wait([writer.seal(handle)], 10)
    assert [attempt.name for attempt in list_attempts(store, run, KEY)] == names
    (selection,) = select(store, run)
    assert (selection.attempt, selection.n_rows) == (names[1], 50)


def test_several_threads_may_put(store, run, new_writer, put):
    writer = new_writer()
    handle = writer.open(PassKey("train", 0))

    def work(base):
        for start in range(base, base + 200, 10):
            put(writer, handle, start, 10)

    threads = [threading.Thread(target=work, args=(base,)) for base in range(0, 1000, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.wait([writer.seal(handle)], 10)
    assert sorted(units(store, run)[0]) == list(range(1000))


def test_put_costs_little_on_the_calling_thread(new_writer, tables):
    writer = new_writer(roll_seconds=600)
    handle = writer.open(KEY)
    built = tables(0, 10)
    costs = []
    for _ in range(2000):
        start = time.thread_time_ns()
        writer.put(handle, lambda: built, rows=10, nbytes=1000)
        costs.append(time.thread_time_ns() - start)
    assert sorted(costs)[len(costs) // 2] < 200_000  # nanoseconds; about 10 000 on an idle machine


def test_pickling_drops_what_is_alive(store, new_writer, put):
    writer = new_writer(on_problem=lambda key, message: None, steps=lambda name: None)
    put(writer, writer.open(KEY), 0, 10)
    copy = pickle.loads(pickle.dumps(writer))
    assert copy.attempt == writer.attempt
    assert copy.options.steps is None
    assert copy.account().rows_put == 0
    assert copy._thread is None


def test_the_thread_is_a_daemon_and_starts_late(new_writer):
    writer = new_writer()
    assert writer._thread is None
    assert writer.flush(1)
    assert writer.wait(None, 1)
    writer.open(KEY)
    assert writer._thread.daemon


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"queue_mb": 0}, "queue_mb=0: expected a number above 0"),
        ({"roll_seconds": -1}, "roll_seconds=-1"),
        ({"roll_mb": "64"}, "roll_mb='64'"),
        ({"on_full": "wait"}, "expected 'block' or 'drop'"),
        ({"codec": "gzip"}, "expected 'zstd'"),
        ({"block_deadline_s": -1}, "expected seconds"),
        ({"keep_vectors": -1}, "None to keep all"),
    ],
)
def test_wrong_options_are_told(kwargs, message):
    with pytest.raises(ValueError, match=message):
        WriterOptions(**kwargs)


def test_wrong_ranks_and_attempts_are_told(store, run):
    with pytest.raises(ValueError, match="expected 0 <= rank < world_size"):
        Writer(store, run, attempt="a-000", rank=2, world_size=2)
    with pytest.raises(ValueError, match="launch id"):
        Writer(store, run, attempt="a/b")
