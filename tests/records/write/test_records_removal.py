"""What is removed counts for nobody at once, and then is gone; killed at any moment, it is the old or the new."""

from __future__ import annotations

import signal

import pyarrow.parquet as pq
import pytest
from zygote import Process

from mld_core.records.format.attempts import list_attempts, list_passes
from mld_core.records.format.layout import PassKey
from mld_core.records.format.removals import Removals, id_digest
from mld_core.records.read.check import check_store
from mld_core.records.read.reader import load, select
from mld_core.records.store.export import export_run
from mld_core.records.store.merge import merge
from mld_core.records.write.gc import gc
from mld_core.records.write.removal import finish_removed, remove_passes, remove_samples, sweep
from mld_core.records.write.reseal import locked
from mld_core.records.write.retention import drop_features

FIRST = "20260101T000000.000000Z-aaaaaa-000"
LATER = "20260102T000000.000000Z-bbbbbb-000"
GONE = ("id-3", "id-7")


@pytest.fixture
def recorded(store, run, write_pass):
    """Two splits of two epochs, one of which was resumed; parts of four rows."""
    for split in ("train", "val"):
        for epoch in range(2):
            batches = [(start, 4, {"step": 0}) for start in range(0, 12, 4)]
            write_pass(PassKey(split, epoch), batches, roll_mb=1e-6)
    write_pass(PassKey("train", 1), [(0, 4, {"step": 9})], attempt=LATER, continues=FIRST, resume_step=9)
    return store


def ids(store, run, family="samples", **where):
    found = load(run.model_name, run.version_name, family, store=store, **where)
    return sorted(found["input_id"].to_pylist())


def on_disk(store, run):
    """The ids in all parts of all attempts."""
    files = store.run_dir(run).rglob("*.parquet")
    return [
        one for path in files for one in pq.read_table(path, columns=["input_id"])["input_id"].to_pylist()
    ]


@pytest.mark.parametrize("family", ["samples", "vectors"])
def test_a_removed_sample_counts_for_no_reader_from_the_line_on(recorded, run, family):
    before = ids(recorded, run, family)
    Removals(recorded, run).append(map(id_digest, GONE))
    assert ids(recorded, run, family) == [one for one in before if one not in GONE]
    assert set(GONE) <= set(on_disk(recorded, run))
    for selection in select(recorded, run, n_epoch=None):
        assert selection.n_rows == selection.table("samples").num_rows == selection.table("vectors").num_rows
        assert selection.report.rows_read - selection.report.superseded_rows == selection.n_rows


def test_the_sweep_takes_the_rows_out_and_writes_the_id_nowhere(recorded, run, tmp_path):
    before = ids(recorded, run)
    would = remove_samples(recorded, run, GONE, dry_run=True)
    assert ids(recorded, run) == before
    done = remove_samples(recorded, run, GONE)
    assert (done.rows, done.files) == (would.rows, would.files)
    assert done.rows == 9
    assert done.bytes > 0
    assert ids(recorded, run) == [one for one in before if one not in GONE]
    assert not set(GONE) & set(on_disk(recorded, run))
    assert check_store(recorded) == []
    assert sweep(recorded, run).files == 0
    texts = [path.read_text() for path in recorded.root.rglob("*.json*")]
    assert not any(one in text for one in GONE for text in texts)
    assert gc(recorded, dry_run=True, min_age_s=0).items == []
    export_run(recorded, run, tmp_path / "x.zip")


def test_one_split_only_and_a_rank_that_comes_later(recorded, run, write_pass):
    remove_samples(recorded, run, GONE, dataset_type="val")
    assert "id-3" in ids(recorded, run, dataset_type="train")
    assert "id-3" not in ids(recorded, run, dataset_type="val")
    write_pass(PassKey("val", 5), [(0, 4, {})])  # the sample is still in the data set
    assert ids(recorded, run, dataset_type="val", n_epoch=5) == ["id-0", "id-1", "id-2"]
    assert sweep(recorded, run).rows == 1
    assert ids(recorded, run, dataset_type="val", n_epoch=5) == ["id-0", "id-1", "id-2"]


def test_a_rank_that_has_not_sealed_is_left_and_told(recorded, run, write_pass):
    folder = write_pass(PassKey("test", 0), [(0, 4, {})], seal=False)
    assert remove_samples(recorded, run, GONE).left == [folder]
    assert "id-3" not in ids(recorded, run, dataset_type="test")


def test_a_part_of_nothing_else_goes_whole(store, run, write_pass):
    write_pass(PassKey("val", 0), [(3, 1, {})])
    remove_samples(store, run, GONE)
    (selection,) = select(store, run)
    assert (selection.n_rows, selection.sealed, selection.table().num_rows) == (0, True, 0)
    assert on_disk(store, run) == []
    assert check_store(store) == []


STEPS = ["remove:part", "part:write", "part:fsync", "part:rename", "remove:manifest", "remove:stale"]
KILLED = """
import os, sys
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.write.removal import remove_samples
from mld_core.records.write.writer import WriterOptions
left = 2
def step(name):
    global left
    left -= name == sys.argv[2]
    if not left:
        os.kill(os.getpid(), 9)
remove_samples(Store(sys.argv[1]), RunKey("model.a", "v1"), ["id-3", "id-7"], options=WriterOptions(steps=step))
"""


@pytest.mark.processes
@pytest.mark.parametrize("step", STEPS)
def test_killed_in_the_middle_it_is_the_old_or_the_new(recorded, run, step, tmp_path):
    expected = [one for one in ids(recorded, run) if one not in GONE]
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    assert Process(script, recorded.root, step, kind="records").wait(300) == -signal.SIGKILL
    for family in ("samples", "vectors"):
        assert ids(recorded, run, family) == expected
    assert [one for one in check_store(recorded) if one.severity == "error"] == []
    sweep(recorded, run)
    assert gc(recorded, min_age_s=0).failed == []
    assert ids(recorded, run) == expected
    assert not set(GONE) & set(on_disk(recorded, run))


def test_who_reads_meanwhile_gets_no_shifted_rows(recorded, run):
    begun = select(recorded, run, n_epoch=None)
    assert all(item.n_rows for item in begun)
    remove_samples(recorded, run, GONE)
    for item in begun:
        with pytest.raises(FileNotFoundError):
            item.table("samples")


def test_who_writes_a_rank_anew_has_it_alone(recorded, run):
    key = next(list_passes(recorded, run, ["val"]))
    (rank,) = list_attempts(recorded, run, key)[0].ranks
    with locked(rank.path):
        assert drop_features(rank) == 0
    assert drop_features(rank) > 0


def test_what_was_removed_in_one_store_is_removed_in_both(recorded, run, tmp_path):
    other = type(recorded)(tmp_path / "other")
    merge([recorded], other)
    remove_samples(recorded, run, GONE)
    report = merge([recorded], other)
    assert (report.conflicts, report.copied) == ([], [])
    assert not set(GONE) & set(ids(other, run))
    sweep(other, run)
    assert not set(GONE) & set(on_disk(other, run))


def test_epochs_and_runs_are_removed_whole(recorded, run):
    would = remove_passes(recorded, run, epochs=[1], dataset_type="val", dry_run=True)
    assert would.rows == 12
    assert len(select(recorded, run, n_epoch=1)) == 2
    assert remove_passes(recorded, run, epochs=[1], dataset_type="val") == would
    assert [one.key.dataset_type for one in select(recorded, run, n_epoch=1)] == ["train"]
    remove_passes(recorded, run)
    assert (recorded.runs(), list(recorded.root.rglob("*.parquet"))) == ([], [])


def test_a_run_that_is_being_recorded_is_not_removed(recorded, run, write_pass):
    write_pass(PassKey("test", 0), [(0, 4, {})], seal=False)  # by this process, which runs
    with pytest.raises(ValueError, match="end the training first"):
        remove_passes(recorded, run)
    assert len(ids(recorded, run)) > 40


def test_a_removal_that_was_killed_is_finished_by_the_next(recorded, run):
    folder = recorded.run_dir(run)
    folder.rename(folder.parent / ".tmp-removed-1-2-abc")
    assert recorded.runs() == []
    finish_removed(recorded)
    assert list(recorded.root.rglob("*.parquet")) == []
