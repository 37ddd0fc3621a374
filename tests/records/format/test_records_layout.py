from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from mld_core.records.format.attempts import list_passes, list_splits
from mld_core.records.format.layout import PassKey, RunKey, Store, store_root
from mld_core.records.read.reader import select


def test_the_root_is_the_argument_else_mld_home_else_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "env"))
    assert store_root() == tmp_path / "env"
    assert store_root(tmp_path / "arg") == tmp_path / "arg"
    monkeypatch.chdir(tmp_path)
    assert store_root("relative") == tmp_path / "relative"
    monkeypatch.delenv("MLD_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store_root() == tmp_path / "home" / ".mld"


def test_paths_follow_the_documented_layout(tmp_path):
    store = Store(tmp_path)
    path = store.rank_dir(RunKey("a/b", "v1.0"), PassKey("val/1", None, 2), "x-000", 3)
    assert path.relative_to(tmp_path).as_posix() == "a%2Fb/v1%2E0/val%2F1/epoch-none/pass-2/x-000/rank-3"
    assert "epoch--1" in store.pass_dir(RunKey("a", "b"), PassKey("val", -1)).parts
    assert pickle.loads(pickle.dumps(store)) == store


def _claim(root, count, queue):
    store = Store(root)
    queue.put([store.claim_version("m") for _ in range(count)])


@pytest.mark.processes
def test_versions_claimed_by_many_processes_are_all_different(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_claim, args=(tmp_path, 10, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    claimed = [name for _ in workers for name in queue.get(timeout=60)]
    for worker in workers:
        worker.join(60)
    assert sorted(claimed) == sorted(f"v{number}" for number in range(1, 31))


def test_the_next_version_comes_after_the_highest(tmp_path):
    store = Store(tmp_path)
    assert store.claim_version("m") == "v1"
    (tmp_path / "m" / "v7").mkdir()
    (tmp_path / "m" / "vx").mkdir()
    assert store.claim_version("m") == "v8"


def test_run_info_is_merged_never_overwritten(tmp_path):
    store, run = Store(tmp_path), RunKey("m", "v")
    first = store.ensure_run(run, {"task": "classification", "n_class": 3})
    second = store.ensure_run(run, {"task": "detection", "class_names": ["a"]})
    assert second["task"] == "classification"
    assert second["class_names"] == ["a"]
    assert second["created_at"] == first["created_at"]
    assert store.update_run_info(run, n_class=4)["n_class"] == 4
    assert store.run_info(run)["generation"] == 0


def test_long_names_are_read_back_from_run_json(tmp_path):
    store, run = Store(tmp_path), RunKey("m" * 300, "ü" * 90)
    store.ensure_run(run, {})
    assert store.runs() == [run]


def test_recreate_hides_this_run_only(store, run, write_pass):
    other = RunKey(run.model_name, "v2")
    write_pass(PassKey("val", 0), [(0, 4, {})])
    write_pass(PassKey("val", 0), [(0, 4, {})], run=other)
    store.update_run_info(run, n_class=3)
    assert store.recreate(run) == 1
    assert select(store, run) == []
    assert len(select(store, other)) == 1
    # What the old generation said about the classes does not bind the new one.
    assert "n_class" not in store.ensure_run(run, {"task": "classification"})
    write_pass(PassKey("val", 0), [(0, 3, {})], attempt="20260102T000000.000000Z-bbbbbb-000")
    assert [item.n_rows for item in select(store, run)] == [3]


def test_foreign_files_and_folders_are_passed_over(store, run, write_pass):
    rank = write_pass(PassKey("val", 0), [(0, 4, {})])
    attempt, number, epoch, split = rank.parent, rank.parents[1], rank.parents[2], rank.parents[3]
    run_dir = store.run_dir(run)
    for folder in (store.root, run_dir.parent, run_dir, split, epoch, number, attempt, rank):
        (folder / "foreign.txt").write_text("x")
        (folder / "foreign folder").mkdir()
        (folder / "foreign folder" / "data.parquet").write_bytes(b"PAR1")
        (folder / ".hidden").mkdir()
        (folder / ".tmp-x").mkdir()
        (folder / "naïve\udcff").mkdir()
    (split / "epoch-1x").mkdir()
    (epoch / "pass-").mkdir()
    (attempt / "rank-01x").mkdir()
    (attempt / "rank-7").write_text("a file")
    (number / "other-attempt").mkdir()
    (number / "other-attempt" / "rank-0").mkdir()
    (number / "other-attempt" / "rank-0" / "attempt.json").write_text('["a list"]')
    os.symlink("/nowhere", number / "broken-link")
    assert store.runs() == [run]
    assert list_splits(store, run)[-1] == "val"
    assert list(list_passes(store, run)) == [PassKey("val", 0, 0)]
    (selection,) = select(store, run, n_epoch=None)
    assert selection.table().num_rows == 4
    assert selection.torn == []


def test_a_run_without_run_json_is_still_found(store, run, write_pass):
    write_pass(PassKey("val", 0), [(0, 4, {})])
    (store.run_dir(run) / "run.json").write_text("{torn")
    assert store.runs() == [run]
    assert select(store, run)[0].n_rows == 4


def test_json_holds_awkward_values(tmp_path):
    store, run = Store(tmp_path), RunKey("m", "v")
    store.ensure_run(run, {"bad": float("nan"), "path": Path("/x"), "lone": "\ud800", "set": {1}})
    data = json.loads((store.run_dir(run) / "run.json").read_text())
    assert data["bad"] == "nan"
    assert data["path"] == "/x"
    assert data["set"] == [1]
