"""The background writer: rows, files and disks that fail, hang or are full."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time

import pyarrow as pa
import pytest
from writer_parts import KEY, units, wait_until

from mld_core.records.format.layout import PassKey, Store
from mld_core.records.read.reader import select
from mld_core.records.write.writer import Writer, WriterOptions

# -- problems --------------------------------------------------------------------------------------------------


def test_rows_that_can_not_be_built_are_counted_and_told_once(store, run, new_writer, put):
    told = []
    writer = new_writer(on_problem=lambda key, message: told.append((key, message)))
    handle = writer.open(KEY)
    for _ in range(3):
        assert writer.put(handle, lambda: {"samples": 1 / 0}, rows=5, nbytes=10)
    put(writer, handle, 0, 10)
    assert writer.wait([writer.seal(handle)], 10)
    account = writer.close(10)
    assert (account.rows_put, account.rows_written, account.rows_lost) == (25, 10, 15)
    (reason,) = account.reasons
    assert "ZeroDivisionError" in reason
    assert [key for key, _ in told] == ["build:ZeroDivisionError"]
    assert select(store, run)[0].losses == account.reasons


def test_rows_that_can_not_be_encoded_are_counted(store, run, new_writer, put):
    told = {}
    writer = new_writer(on_problem=told.__setitem__)
    handle = writer.open(KEY)
    bad = pa.table({"unit": pa.array([1]), "value": pa.array([None], type=pa.month_day_nano_interval())})
    writer.put(handle, lambda: {"samples": bad}, rows=1, nbytes=10)
    put(writer, handle, 0, 10)
    assert writer.wait([writer.seal(handle)], 10)
    account = writer.close(10)
    assert (account.rows_written, account.rows_lost) == (10, 1)
    assert any(key.startswith("encode:") for key in told)
    assert units(store, run) == [list(range(10))]


def test_on_problem_that_raises_does_not_end_the_writer(store, run, new_writer, put):
    def on_problem(key, message):
        raise RuntimeError("not this too")

    writer = new_writer(on_problem=on_problem)
    handle = writer.open(KEY)
    writer.put(handle, lambda: {"samples": 1 / 0}, rows=5, nbytes=10)
    put(writer, handle, 0, 10)
    assert writer.wait([writer.seal(handle)], 10)
    assert units(store, run) == [list(range(10))]


@pytest.mark.parametrize(
    "step",
    [
        "open:mkdir",
        "open:manifest",
        "part:write",
        "part:fsync",
        "part:rename",
        "part:done",
        "seal:manifest",
        "seal:stale",
    ],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_step_that_fails_for_a_while_loses_and_doubles_nothing(store, run, new_writer, put, step, number):
    left = [2]

    def steps(name):
        if name == step and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))

    told = {}
    writer = new_writer(steps=steps, on_problem=told.__setitem__, fsync=True)
    handle = writer.open(KEY)
    put(writer, handle, 0, 10)
    writer.flush(0.01)
    put(writer, handle, 10, 10)
    assert writer.wait([writer.seal(handle)], 20)
    account = writer.close(10)
    assert left == [0]
    assert (account.rows_written, account.rows_lost) == (20, 0)
    assert units(store, run) == [list(range(20))]
    assert list(told) == [f"write:{errno.errorcode[number]}"]
    assert "kept in memory" in next(iter(told.values()))
    assert not any(
        path.name.startswith(".tmp") for path in store.rank_dir(run, KEY, writer.attempt, 0).iterdir()
    )


def test_compaction_that_fails_leaves_the_parts_as_they_are(store, run, new_writer, put):
    def steps(name):
        if name == "compact:group":
            raise OSError(errno.ENOSPC, "full")

    told = {}
    writer = new_writer(steps=steps, on_problem=told.__setitem__)
    handle = writer.open(KEY)
    for start in range(0, 30, 10):
        put(writer, handle, start, 10)
        writer.flush(10)
    assert writer.wait([writer.seal(handle)], 10)
    assert "nothing is lost" in told["compact"]
    assert units(store, run) == [list(range(30))]


def test_a_disk_that_stays_full_keeps_rows_within_the_bound_then_counts_them(
    store, run, new_writer, put, tables
):
    full = threading.Event()
    full.set()

    def steps(name):
        if name == "part:write" and full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    told = {}
    writer = new_writer(
        steps=steps, queue_mb=0.1, roll_mb=0.01, block_deadline_s=0.3, on_problem=told.__setitem__
    )
    handle = writer.open(PassKey("train", 0))
    size = sum(table.nbytes for table in tables(0, 100).values())
    taken = []
    slowest = 0.0
    for start in range(0, 4000, 100):
        before = time.monotonic()
        if put(writer, handle, start, 100):
            taken.append(start)
        slowest = max(slowest, time.monotonic() - before)
        assert writer._intake.bytes <= 0.1 * (1 << 20) + size
    assert slowest < 8
    account = writer.account()
    assert 0.3 <= account.blocked_seconds < 8  # one deadline, not one per put
    assert account.rows_lost == 4000 - 100 * len(taken)
    (reason,) = account.reasons
    assert "ENOSPC" in reason
    assert "ENOSPC" in told["write:ENOSPC"]
    full.clear()
    assert writer.wait([writer.seal(handle)], 20)
    expected = [unit for start in taken for unit in range(start, start + 100)]
    (selection,) = select(store, run)
    assert selection.table()["unit"].to_pylist() == expected
    assert selection.losses == {reason: account.rows_lost}


def test_a_disk_that_hangs_costs_one_deadline_and_the_circuit_closes_again(store, run, new_writer, put):
    hang = threading.Event()
    reached = threading.Event()

    def steps(name):
        if name == "part:write":
            reached.set()
            hang.wait(30)

    told = {}
    writer = new_writer(
        steps=steps, queue_mb=0.05, roll_mb=0.01, block_deadline_s=0.4, on_problem=told.__setitem__
    )
    handle = writer.open(PassKey("train", 0))
    start = time.monotonic()
    accepted = [put(writer, handle, 100 * index, 100) for index in range(200)]
    assert reached.is_set()
    assert 0.4 <= time.monotonic() - start < 15  # one deadline, not 200
    assert not all(accepted)
    assert not writer.flush(0.2)
    assert not writer.wait(None, 0.1)
    assert any(key.startswith("lost:the queue is full") for key in told)
    hang.set()
    wait_until(lambda: not writer._intake.tripped)
    wait_until(lambda: put(writer, handle, 50_000, 100))
    assert writer.wait([writer.seal(handle)], 10)
    account = writer.close(10)
    assert account.rows_put == account.rows_written + account.rows_lost


def test_on_full_drop_never_waits(new_writer, put):
    hang = threading.Event()
    writer = new_writer(steps=lambda name: hang.wait(30), queue_mb=0.02, on_full="drop")
    handle = writer.open(KEY)
    start = time.monotonic()
    assert not all(put(writer, handle, 100 * index, 100) for index in range(50))
    assert time.monotonic() - start < 10  # it hangs for 30
    assert writer.account().blocked_seconds == 0
    hang.set()


def test_closing_honours_its_timeout_while_the_disk_hangs(store, run, new_writer, put):
    hang = threading.Event()
    writer = new_writer(steps=lambda name: hang.wait(30) if name == "part:write" else None)
    handle = writer.open(KEY)
    put(writer, handle, 0, 10)
    ticket = writer.seal(handle)
    start = time.monotonic()
    account = writer.close(0.3)
    assert time.monotonic() - start < 10  # it hangs for 30
    assert (account.rows_put, account.rows_written, account.rows_lost) == (10, 0, 10)
    assert "not written when the writer was closed" in next(iter(account.reasons))
    assert not writer.wait([ticket], 1)
    assert not put(writer, handle, 10, 10)
    hang.set()
    wait_until(lambda: not writer._thread.is_alive())
    assert writer.account().rows_lost == 20
    assert writer.close(1).rows_lost == 20


# -- real disks ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB of its own."""
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_disk_that_is_really_full(small_disk, run, put):
    store = Store(small_disk / "store")
    told = {}
    options = WriterOptions(roll_mb=0.05, codec="none", fsync=False)
    writer = Writer(store, run, attempt="a-000", options=options, on_problem=told.__setitem__)
    handle = writer.open(PassKey("train", 0))
    (small_disk / "ballast").write_bytes(b"x" * 3_600_000)
    for start in range(0, 4000, 100):
        assert put(writer, handle, start, 100, width=64)
    wait_until(lambda: "write:ENOSPC" in told)
    before = select(store, run)[0]
    assert before.torn == []
    assert 0 < before.n_rows < 4000
    (small_disk / "ballast").unlink()
    assert writer.wait([writer.seal(handle)], 30)
    account = writer.close(10)
    assert account.rows_lost == 0
    assert units(store, run) == [list(range(4000))]


def test_a_disk_that_turns_read_only(small_disk, run, put):
    store = Store(small_disk / "store")
    told = {}
    writer = Writer(store, run, attempt="a-000", on_problem=told.__setitem__)
    handle = writer.open(KEY)
    put(writer, handle, 0, 10)
    assert writer.flush(10)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    put(writer, handle, 10, 10)
    assert not writer.flush(1)
    assert "EROFS" in told["write:EROFS"]
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert writer.wait([writer.seal(handle)], 30)
    assert writer.close(10).rows_lost == 0
    assert units(store, run) == [list(range(20))]


def test_a_store_below_a_file_never_raises(tmp_path, run, put):
    (tmp_path / "file").write_text("not a folder")
    told = {}
    writer = Writer(Store(tmp_path / "file" / "store"), run, attempt="a-000", on_problem=told.__setitem__)
    handle = writer.open(KEY)
    assert put(writer, handle, 0, 10)
    assert not writer.wait([writer.seal(handle)], 1)
    account = writer.close(0.5)
    assert account.rows_lost == 10
    assert "write:ENOTDIR" in told
