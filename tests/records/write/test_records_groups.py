"""The writer's thread takes batches in groups: when it wakes, what becomes one table, what a fault costs."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass

import pyarrow as pa
import pytest
from writer_parts import KEY, units, wait_until

from mld_core.records.format.layout import PassKey
from mld_core.records.write import intake
from mld_core.records.write.intake import GROUP_BATCHES
from mld_core.records.write.worker import Worker

NEVER = 3600.0


@dataclass(eq=False)
class Joinable:
    """A batch that is made into tables with its neighbours; `seen` collects how many came together."""

    tables_of: dict[str, pa.Table]
    seen: list[int]
    key: object = "same"
    bad: bool = False

    def tables(self, group):
        if any(rows.bad for rows in group):
            raise RuntimeError("planted while joining")
        self.seen.append(len(group))
        return {
            family: pa.concat_tables([rows.tables_of[family] for rows in group]) for family in self.tables_of
        }


@dataclass(eq=False)
class Build:
    """What is put: holds the batch."""

    rows: Joinable

    def __call__(self):
        return self.rows


@pytest.fixture
def patient(monkeypatch):
    """No group is due by time alone."""
    monkeypatch.setattr(intake, "GROUP_SECONDS", NEVER)


@pytest.fixture
def joined(tables):
    """Puts `count` batches of ten rows that can be joined; the list says how many came together."""

    def put(writer, handle, count, *, first=0, key="same", bad=()):
        seen = []
        for k in range(first, first + count):
            rows = Joinable(tables(10 * k, 10), seen, key, k in bad)
            assert writer.put(handle, lambda rows=rows: rows, rows=10, nbytes=1000)
        return seen

    return put


def test_the_thread_sleeps_until_a_group_is_there(patient, new_writer, joined):
    writer = new_writer(roll_seconds=NEVER)
    handle = writer.open(KEY)
    assert writer.flush(10)  # the pass is open, the thread asleep
    asleep = threading.Event()
    seen = joined(writer, handle, GROUP_BATCHES - 1)
    assert not asleep.wait(0.2)
    assert seen == [], "no batch woke the thread by itself"
    more = joined(writer, handle, 1, first=GROUP_BATCHES - 1)
    wait_until(lambda: seen + more == [GROUP_BATCHES])


def test_a_group_costs_one_look_at_the_queue_not_one_a_batch(new_writer, joined, monkeypatch):
    monkeypatch.setattr(intake, "GROUP_SECONDS", 30.0)
    looks = []
    due_at = Worker._due_at
    monkeypatch.setattr(Worker, "_due_at", lambda worker: looks.append(1) or due_at(worker))
    writer = new_writer(roll_seconds=60.0)
    handle = writer.open(KEY)
    assert writer.flush(10)
    joined(writer, handle, 1)
    wait_until(lambda: writer._intake.sleeps_until == writer._intake.due_at)  # asleep until that batch is due
    before = len(looks)
    for first in range(1, 40):
        joined(writer, handle, 1, first=first)
        time.sleep(0.001)  # the thread could run now
    assert len(looks) == before


def test_bytes_make_a_group(patient, new_writer, joined, monkeypatch):
    monkeypatch.setattr(intake, "GROUP_BYTES", 2500)
    writer = new_writer(roll_seconds=NEVER)
    handle = writer.open(KEY)
    assert writer.flush(10)  # opening the pass takes no batch along
    seen = joined(writer, handle, 3)
    wait_until(lambda: sum(seen) == 3)


def test_what_may_change_is_built_at_once(patient, new_writer, tables):
    writer = new_writer(roll_seconds=NEVER)
    seen = []
    rows = Joinable(tables(0, 10), seen)
    writer.put(writer.open(KEY), lambda: rows, rows=10, nbytes=1000, hurry=True)
    wait_until(lambda: seen == [1])


def test_half_a_second_is_enough(new_writer, joined):
    writer = new_writer(roll_seconds=NEVER)
    seen = joined(writer, writer.open(KEY), 3)
    wait_until(lambda: sum(seen) == 3)


@pytest.mark.parametrize("end", ["flush", "seal", "abandon", "close"])
def test_flush_and_every_end_take_what_waits_at_once(patient, store, run, new_writer, joined, end):
    writer = new_writer(roll_seconds=NEVER)
    handle = writer.open(KEY)
    joined(writer, handle, 5)
    if end == "flush":
        assert writer.flush(10)
    elif end == "seal":
        assert writer.wait([writer.seal(handle)], 10)
    elif end == "abandon":
        writer.abandon(handle)
    if end in {"abandon", "close"}:
        assert writer.close(10).rows_lost == 0
    assert units(store, run) == [list(range(50))]


def test_one_part_holds_one_table_for_a_group_in_the_order_put(patient, store, run, new_writer, joined, put):
    writer = new_writer(roll_seconds=NEVER)
    handle, other = writer.open(KEY), writer.open(PassKey("train", 3))
    assert writer.flush(10)
    seen = joined(writer, handle, 4)
    put(writer, handle, 40, 10)  # comes as tables: joined with none
    later = joined(writer, handle, 1, first=5)
    of_other = joined(writer, other, 3)
    rest = joined(writer, handle, 1, first=6)  # another pass between them does not part them
    wide = joined(writer, handle, 2, first=7, key="another")
    assert writer.wait([writer.seal(handle), writer.seal(other)], 10)
    assert (seen, later, rest, wide, of_other) == ([4], [2], [], [2], [3])
    assert units(store, run, dataset_type="val") == [list(range(90))]
    assert units(store, run, dataset_type="train") == [list(range(30))]


def test_what_is_wrong_with_a_batch_costs_only_its_rows(patient, store, run, new_writer, joined):
    told = []
    writer = new_writer(roll_seconds=NEVER, on_problem=lambda key, message: told.append(key))
    handle = writer.open(KEY)
    joined(writer, handle, 2)

    def fails():
        raise ValueError("planted while building")

    assert writer.put(handle, fails, rows=10, nbytes=1000)
    assert writer.put(handle, dict, rows=10, nbytes=1000)  # there were none after all
    joined(writer, handle, 3, first=4, bad={5})
    assert writer.wait([writer.seal(handle)], 10)
    account = writer.close(10)
    assert units(store, run) == [[*range(20), *range(40, 50), *range(60, 70)]]
    assert (account.rows_put, account.rows_written, account.rows_lost) == (60, 40, 20)
    assert sorted(told) == ["build:RuntimeError", "build:ValueError"]
    assert writer._intake.bytes == 0


def test_a_full_queue_does_not_wait_for_a_group(patient, new_writer, joined, tables):
    writer = new_writer(queue_mb=0.01, roll_seconds=NEVER, block_deadline_s=30)
    handle = writer.open(KEY)
    joined(writer, handle, 100)  # 100 kB through 10 kB
    assert writer.close(20).rows_lost == 0
    assert writer.account().blocked_seconds < 10


def test_waiting_for_a_group_adds_nothing_to_what_a_kill_can_lose(store, run, new_writer, put, monkeypatch):
    monkeypatch.setattr(intake, "GROUP_SECONDS", 600.0)
    writer = new_writer(roll_seconds=0.05)
    put(writer, writer.open(KEY), 0, 10)
    wait_until(lambda: writer.account().rows_written == 10)


def test_when_a_flush_is_answered_nothing_holds_what_was_put(patient, new_writer, tables, monkeypatch):
    writer = new_writer(roll_seconds=NEVER)
    handle = writer.open(KEY)
    left = []
    answer = Worker._resolve

    def resolve(worker):
        if worker._waiting:
            left.append([reference() for reference in held if reference() is not None])
        answer(worker)

    monkeypatch.setattr(Worker, "_resolve", resolve)
    for fits in (True, False):
        held = []
        for k in range(3):
            rows = Joinable(tables(10 * k, 10), [], bad=not fits and k == 1)
            build = Build(rows)
            held += [weakref.ref(rows), weakref.ref(build)]
            assert writer.put(handle, build, rows=10, nbytes=1000)
        del rows, build
        assert writer.flush(10)
    assert left == [[], []]
