from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from mld_core.records.format.attempts import list_attempts, read_rank
from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.options import WriterOptions
from mld_core.records.read.check import check_store
from mld_core.records.read.reader import select
from mld_core.records.store.merge import merge
from mld_core.records.write.gc import folder_bytes, gc
from mld_core.records.write.retention import drop_features, has_features, prune

FIRST, SECOND, THIRD = (f"2026010{day}T000000.000000Z-aaaaaa-000" for day in (1, 2, 3))
KEY = PassKey("val", 0)
BATCHES = [(start, 10, {"step": start // 10}) for start in range(0, 50, 10)]


def with_features(store, run):
    found = select(store, run, n_epoch=None)
    return sorted(
        (item.key.dataset_type, item.key.n_epoch)
        for item in found
        if "feat" in item.table("vectors").column_names
    )


# -- features of old epochs ------------------------------------------------------------------------------------


def test_features_of_all_but_the_last_epochs_go_and_the_rest_stays(store, run, write_pass):
    for epoch in range(4):
        for split in ("train", "val"):
            write_pass(PassKey(split, epoch), BATCHES, roll_mb=0.002)
    before = folder_bytes(store.root)
    live = select(store, run, dataset_type="train", n_epoch=0)[0]
    assert live.n_rows == 50
    preview = prune(store, run, keep_vectors=2, dry_run=True)
    assert len(preview.pruned) == 4
    assert folder_bytes(store.root) == before
    report = prune(store, run, keep_vectors=2)
    assert report.freed_bytes > 0
    assert folder_bytes(store.root) == report.store_bytes < before
    assert with_features(store, run) == [("train", 2), ("train", 3), ("val", 2), ("val", 3)]
    for item in select(store, run, n_epoch=None):
        assert item.table("samples")["unit"].to_pylist() == list(range(50))
        vectors = item.table("vectors")
        assert vectors["unit"].to_pylist() == list(range(50))
        assert "logits" in vectors.column_names
        assert item.meta.get("features_dropped", False) == (item.key.n_epoch < 2)
    # A reader that had planned before reads on; what is gone is null.
    assert live.table("samples")["unit"].to_pylist() == list(range(50))
    assert [item for item in check_store(store) if item.severity == "error"] == []
    assert prune(store, run, keep_vectors=2).pruned == []


def test_the_writer_prunes_its_own_rank_after_each_seal(store, run, new_writer, put):
    writer = new_writer(keep_vectors=1)
    for epoch in range(3):
        handle = writer.open(PassKey("val", epoch))
        put(writer, handle, 0, 10)
        assert writer.wait([writer.seal(handle)], 10)
    writer.close(10)
    assert with_features(store, run) == [("val", 2)]


def test_the_last_epochs_are_those_sealed_last(store, run, write_pass):
    for epoch in (5, 6, None, 1):
        write_pass(PassKey("val", epoch), BATCHES)
    prune(store, run, keep_vectors=2)
    assert {
        item.key.n_epoch
        for item in select(store, run, n_epoch=None)
        if "feat" in item.table("vectors").column_names
    } == {None, 1}


def test_keep_none_and_zero(store, run, write_pass):
    write_pass(KEY, BATCHES)
    assert prune(store, run, keep_vectors=None).pruned == []
    assert len(prune(store, run, keep_vectors=0).pruned) == 1
    with pytest.raises(ValueError, match="None to keep all"):
        prune(store, run, keep_vectors=-1)
    with pytest.raises(ValueError, match="None for no bound"):
        prune(store, run, max_store_gb=0)


class StopError(BaseException):
    pass


@pytest.mark.parametrize("step", ["prune:part", "part:rename", "prune:manifest", "prune:stale"])
@pytest.mark.parametrize("kind", [OSError, StopError])
def test_pruning_that_stops_anywhere_loses_no_row(store, run, write_pass, step, kind):
    folder = write_pass(KEY, BATCHES, roll_mb=0.002)
    calls = []

    def steps(name):
        calls.append(name)
        if name == step and calls.count(name) == (2 if step in {"prune:part", "part:rename"} else 1):
            raise kind(5, "stop")

    with pytest.raises(kind):
        drop_features(read_rank(folder), WriterOptions(steps=steps))
    (selection,) = select(store, run)
    assert selection.table("samples")["unit"].to_pylist() == list(range(50))
    assert selection.table("vectors")["unit"].to_pylist() == list(range(50))
    rank = read_rank(folder)
    assert has_features(rank) == (step != "prune:stale")
    drop_features(rank)
    gc(store, min_age_s=0)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == len(read_rank(folder).sealed.parts)
    assert select(store, run)[0].table("vectors")["unit"].to_pylist() == list(range(50))


def test_a_bound_on_the_store_warns_first_and_spares_the_newest_pass(store, run, write_pass):
    for epoch in range(4):
        write_pass(PassKey("val", epoch), [(0, 2000, {"width": 256})], codec="none")
    size = folder_bytes(store.root)
    gib = 1 << 30
    near = prune(store, keep_vectors=None, max_store_gb=size * 1.05 / gib)
    assert near.pruned == []
    assert "go next" in near.warnings[0]
    assert prune(store, keep_vectors=None, max_store_gb=10).warnings == []
    seen = []
    done = prune(
        store,
        keep_vectors=None,
        max_store_gb=size * 0.95 / gib,
        on_warning=lambda text: seen.append((text, folder_bytes(store.root))),
    )
    assert seen[0][1] == size  # told before anything went
    assert "dropped now" in seen[0][0]
    assert len(done.pruned) == 1
    assert with_features(store, run) == [("val", 1), ("val", 2), ("val", 3)]
    last = prune(store, keep_vectors=None, max_store_gb=1 / gib)
    assert with_features(store, run) == [("val", 3)]
    assert "still holds" in last.warnings[-1]
    assert all(item.n_rows == 2000 for item in select(store, run, n_epoch=None))


# -- gc --------------------------------------------------------------------------------------------------------


def test_gc_says_then_removes_what_nobody_reads(store, run, write_pass):
    write_pass(KEY, BATCHES, attempt=FIRST, seal=False)
    shutil.copytree(store.pass_dir(run, KEY) / FIRST, store.root / "keep")
    write_pass(KEY, BATCHES, attempt=SECOND)
    rank = write_pass(KEY, BATCHES, attempt=THIRD)
    (rank / ".tmp-part-000009-1-2").mkdir()
    (rank / ".tmp-part-000009-1-2" / "samples.parquet").write_bytes(b"x" * 1000)
    shutil.copytree(
        next(path for path in rank.iterdir() if path.name.startswith("part-")), rank / "part-000077"
    )
    (store.run_dir(run) / ".tmp-run.json-1").write_text("{}")
    (rank / "notes.txt").write_text("mine")
    assert gc(store, min_age_s=3600).items == []
    preview = gc(store, min_age_s=0, dry_run=True)
    kinds = sorted(item.kind for item in preview.items)
    assert kinds == [
        "stale part",
        "superseded attempt",
        "tmp",
        "tmp",
    ]  # the unsealed one's process runs: this one
    before = folder_bytes(store.root)
    done = gc(store, min_age_s=0)
    assert [item.path for item in done.items] == [item.path for item in preview.items]
    assert before - folder_bytes(store.root) == done.bytes == preview.bytes > 1000
    assert (rank / "notes.txt").exists()
    assert select(store, run)[0].table()["unit"].to_pylist() == list(range(50))
    assert gc(store, min_age_s=0).items == []


def test_gc_spares_an_attempt_whose_process_still_runs(store, run, new_writer, put, write_pass):
    writer = new_writer(FIRST)
    handle = writer.open(KEY)
    put(writer, handle, 0, 10)
    assert writer.flush(10)
    write_pass(KEY, BATCHES, attempt=SECOND)
    assert gc(store, min_age_s=0).items == []
    assert writer.wait([writer.seal(handle)], 10)
    assert [item.kind for item in gc(store, min_age_s=0).items] == ["superseded attempt"]


def test_gc_keeps_the_attempts_a_resumed_pass_is_made_of(store, run, write_pass):
    key = PassKey("train", 0)
    write_pass(key, BATCHES, attempt=FIRST)
    write_pass(key, [(0, 10, {"step": 3})], attempt=SECOND, continues=FIRST, resume_step=3)
    assert gc(store, min_age_s=0).items == []
    assert select(store, run)[0].n_rows == 40


def test_gc_removes_older_generations(store, run, write_pass):
    other = RunKey("other", "v1")
    write_pass(KEY, BATCHES)
    write_pass(KEY, BATCHES, run=other)
    store.recreate(run)
    write_pass(PassKey("val", 1), BATCHES, attempt=SECOND)
    done = gc(store, min_age_s=0)
    assert [item.kind for item in done.items] == ["old generation"]
    assert not (store.pass_dir(run, KEY) / FIRST).exists()
    assert len(select(store, other)) == len(select(store, run)) == 1


# -- merge -----------------------------------------------------------------------------------------------------


def two_stores(tmp_path, write_pass, **kwargs):
    stores = [Store(tmp_path / name) for name in ("one", "two")]
    for rank, place in enumerate(stores):
        batches = [
            (start, rows, {"ids": [f"{rank}-{start + row}" for row in range(rows)]})
            for start, rows, _ in BATCHES
        ]
        write_pass(KEY, batches, rank=rank, world_size=2, into=place, **kwargs)
    return stores


def test_ranks_of_two_machines_become_one_sealed_pass(tmp_path, run, write_pass):
    stores = two_stores(tmp_path, write_pass)
    assert [select(place, run)[0].missing_ranks for place in stores] == [[1], [0]]
    joined = Store(tmp_path / "joined")
    report = merge(stores, joined)
    assert (len(report.copied), report.skipped, report.conflicts) == (2, [], [])
    (selection,) = select(joined, run)
    assert selection.sealed
    assert selection.n_rows == 100
    assert [item for item in check_store(joined) if item.severity == "error"] == []
    again = merge([store.root for store in stores], joined.root)
    assert (again.copied, len(again.skipped), again.conflicts) == ([], 2, [])


def test_a_later_state_of_the_same_rank_replaces_an_earlier_copy(tmp_path, run, write_pass):
    key = PassKey("train", 0)
    source, target = Store(tmp_path / "source"), Store(tmp_path / "target")
    write_pass(key, BATCHES[:2], into=source, seal=False)
    merge([source], target)
    assert select(target, run)[0].n_rows == 20
    rank = list_attempts(source, run, key)[0].ranks[0]
    later = Store(tmp_path / "later")
    shutil.copytree(source.root, later.root)
    shutil.copytree(rank.path / "part-000000", later.rank_dir(run, key, FIRST, 0) / "part-000001")
    report = merge([later], target)
    assert len(report.copied) == 1
    assert select(target, run)[0].n_rows == 40
    assert len(merge([source], target).skipped) == 1  # the older state does not come back


def test_conflicts_are_reported_and_change_nothing(tmp_path, run, write_pass):
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    write_pass(KEY, BATCHES, into=one)
    write_pass(KEY, BATCHES[:1], into=two)
    one.update_run_info(run, class_names=["a"])
    two.update_run_info(run, class_names=["b"])
    report = merge([two], one)
    assert report.copied == []
    assert len(report.conflicts) == 2
    assert "class_names" in report.conflicts[0]
    assert select(one, run)[0].n_rows == 50
    assert one.run_info(run)["class_names"] == ["a"]


def test_merge_takes_the_current_generation_into_the_targets(tmp_path, run, write_pass):
    source, target = Store(tmp_path / "source"), Store(tmp_path / "target")
    write_pass(KEY, BATCHES, into=source)
    source.recreate(run)
    write_pass(PassKey("val", 1), BATCHES, into=source, attempt=SECOND)
    target.recreate(run)
    target.recreate(run)
    report = merge([source], target)
    assert len(report.copied) == 1
    assert [item.key.n_epoch for item in select(target, run, n_epoch=None)] == [1]


def test_wrong_stores_are_told(tmp_path):
    with pytest.raises(ValueError, match="give the root of a store"):
        merge([tmp_path / "nowhere"], tmp_path / "target")
    (tmp_path / "target").mkdir()
    with pytest.raises(ValueError, match="is the target itself"):
        merge([tmp_path / "target"], tmp_path / "target")


def test_a_merge_without_hard_room_leaves_nothing_half(tmp_path, run, write_pass, monkeypatch):
    (store,) = two_stores(tmp_path, write_pass)[:1]
    target = Store(tmp_path / "target")
    blocked = target.rank_dir(run, KEY, FIRST, 0).parent
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder must go")
    with pytest.raises(OSError, match="exists"):
        merge([store], target)
    assert not [path for path in Path(target.root).rglob(".tmp*") if path.is_dir()]


def test_an_old_tmp_folder_is_taken_by_age(store, run, write_pass):
    rank = write_pass(KEY, BATCHES)
    old, new = rank / ".tmp-old", rank / ".tmp-new"
    for folder in (old, new):
        folder.mkdir()
    past = time.time() - 7200
    os.utime(old, (past, past))
    assert [item.path for item in gc(store).items] == [old]
    assert new.exists()
