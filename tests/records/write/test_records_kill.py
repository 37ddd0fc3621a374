"""SIGKILL at any moment: what was flushed is there once and whole, what comes after is absent or whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import pytest
import record_writer_process
from zygote import Process

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.read.check import check_store
from mld_core.records.read.reader import select
from mld_core.records.write.gc import gc
from mld_core.records.write.writer import Writer

SCRIPT = record_writer_process.__file__
RUN = RunKey("m", "v1")
pytestmark = pytest.mark.processes


def start(store: Store, mode: str, attempt: str = "20260101T000000.000000Z-aaaaaa-000") -> Process:
    return Process(SCRIPT, store.root, attempt, mode, kind="records")


def check_rows(store: Store, flushed: int, sealed: bool) -> None:
    found = select(store, RUN)
    assert len(found) == (1 if flushed or found else 0)
    if not found:
        return
    (selection,) = found
    samples, vectors = selection.table("samples"), selection.table("vectors")
    units = samples["unit"].to_pylist()
    assert units == list(range(len(units))), "rows are doubled, missing or out of order"
    assert len(units) >= flushed
    assert not units or samples["value"].to_pylist() == units
    assert vectors["unit"].to_pylist() == units
    assert selection.n_rows == len(units)
    assert selection.torn == []
    assert not sealed or selection.sealed
    errors = [item for item in check_store(store) if item.severity == "error"]
    assert errors == []
    before = len(units)
    assert gc(store, min_age_s=0).failed == []
    assert select(store, RUN)[0].table().num_rows == before


STEPS = [
    ("open:mkdir", 1),
    ("open:manifest", 1),
    ("open:done", 1),
    ("part:write", 2),
    ("part:fsync", 2),
    ("part:rename", 3),
    ("part:done", 3),
    ("compact:group", 1),
    ("part:write", 9),
    ("part:fsync", 18),
    ("part:rename", 9),
    ("seal:manifest", 1),
    ("seal:stale", 1),
    ("seal:done", 1),
]


@pytest.mark.parametrize(("step", "count"), STEPS)
def test_killed_between_two_steps_of_the_protocol(tmp_path, step, count):
    store = Store(tmp_path)
    process = start(store, f"pause:{step}:{count}")
    flushed, paused = 0, False
    for line in process.lines():
        if line.startswith("flushed"):
            flushed = int(line.split()[1])
        if line.startswith("paused"):
            paused = True
            break
    process.kill()
    process.wait(30)
    assert paused, f"step {step} was never reached {count} times"
    check_rows(store, flushed, sealed=step in {"seal:stale", "seal:done"})
    # A new attempt wins once it is sealed, whatever the killed one left.
    process = start(store, "pass", "20260102T000000.000000Z-bbbbbb-000")
    process.wait(60)
    assert process.stdout.splitlines()[-1] == "sealed"
    (selection,) = select(store, RUN)
    assert selection.attempt.startswith("20260102")
    assert selection.table()["unit"].to_pylist() == list(range(400))


def test_killed_at_random_times(tmp_path):
    chance = random.Random(7)
    for turn in range(6):
        store = Store(tmp_path / str(turn))
        process = start(store, "run")
        flushed, limit = 0, chance.randrange(1, 40)
        for number, line in enumerate(process.lines()):
            flushed = int(line.split()[1])
            if number >= limit:
                break
        # Not at a boundary of ours: somewhere in the next ten milliseconds.
        signal.sigtimedwait([], chance.random() * 0.01)
        process.kill()
        process.wait(30)
        whole = [line for line in process.stdout.splitlines(keepends=True) if line.endswith("\n")]
        flushed = max(flushed, int(whole[-1].split()[1]))
        check_rows(store, flushed, sealed=False)


def test_an_interpreter_that_just_ends_keeps_what_was_put(tmp_path):
    code = (
        "import sys; import record_writer_process as p\n"
        "from mld_core.records.format.layout import *; from mld_core.records.write.writer import *\n"
        "w = Writer(Store(sys.argv[1]), RunKey('m', 'v1'), attempt='a-000')\n"
        "h = w.open(PassKey('train', 0)); w.put(h, lambda: p.tables(0), rows=50, nbytes=4000)\n"
        "del w; raise ValueError('the training failed')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "the training failed" in done.stderr
    (selection,) = select(Store(tmp_path), RUN)
    assert not selection.sealed
    assert selection.missing_ranks == [0]
    assert selection.n_rows == 50


def test_a_fork_does_not_write_the_parents_rows(tmp_path, put):
    store = Store(tmp_path)
    writer = Writer(store, RUN, attempt="a-000")
    handle = writer.open(PassKey("val", 0))
    assert put(writer, handle, 0, 10)
    child = os.fork()
    if child == 0:  # exit codes tell the parent what went wrong
        code = 1
        try:
            refused = put(writer, handle, 100, 10)
            own = Writer(store, RUN, attempt="b-000")
            mine = own.open(PassKey("val", 1))
            fine = put(own, mine, 0, 5) and own.wait([own.seal(mine)], 20)
            code = 0 if not refused and fine and writer.close(5).rows_lost == 10 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert put(writer, handle, 10, 10)
    assert writer.wait([writer.seal(handle)], 20)
    assert writer.close(5).rows_written == 20
    rows = {item.key.n_epoch: item.table()["unit"].to_pylist() for item in select(store, RUN, n_epoch=None)}
    assert rows == {0: list(range(20)), 1: list(range(5))}


def _spawned(writer, key):
    handle = writer.open(key)
    assert writer.wait([writer.seal(handle)], 20)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_writer_travels_to_another_process_without_its_live_parts(tmp_path, method, put):
    import multiprocessing

    writer = Writer(Store(tmp_path), RUN, attempt="a-000", on_problem=lambda key, message: None)
    put(writer, writer.open(PassKey("val", 0)), 0, 10)
    context = multiprocessing.get_context(method)
    child = context.Process(target=_spawned, args=(writer, PassKey("val", 1)))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert writer.close(10).rows_written == 10
    found = {item.key.n_epoch: item.sealed for item in select(Store(tmp_path), RUN, n_epoch=None)}
    assert found == {0: False, 1: True}
