"""The work of the process beside a training, here in this one: what goes wrong costs one pass, and its row says so."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from mld_core.evaluation.live import loop
from mld_core.evaluation.live.figures import Epochs, write_figures
from mld_core.evaluation.live.helper import LiveSettings
from mld_core.evaluation.live.inbox import Inbox
from mld_core.records.write.reseal import locked


@pytest.fixture
def work(tmp_path: Path, records, monkeypatch: pytest.MonkeyPatch):
    """A store's factory, and what evaluates the passes given by their rank folders; the rows by their epochs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run()

    def evaluate(*ranks: Path) -> dict[int, dict[str, Any]]:
        read, write = os.pipe()
        os.write(write, b"".join(json.dumps(str(rank)).encode() + b"\n" for rank in ranks))
        os.close(write)
        settings = LiveSettings(str(factory.store.root), run.model_name, run.version_name)
        loop.Evaluation(settings, Inbox(read), []).run()
        os.close(read)
        return {row["n_epoch"]: row for row in Epochs(factory.store, run).rows()}

    def seal(epoch: int, rows: int = 60) -> Path:
        before = set(factory.store.root.rglob("seal.json"))
        factory.add_pass(run, "val", records.make_data(rows, seed=epoch), n_epoch=epoch)
        (new,) = set(factory.store.root.rglob("seal.json")) - before
        return new.parent

    return factory.store, seal, evaluate


def test_records_that_go_while_they_are_read_cost_no_other_pass(
    work, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, seal, evaluate = work
    going, real = seal(0), loop.scalar_metrics

    def removed_first(found: Any, info: Any) -> dict[str, Any]:
        for path in going.iterdir() if found.key.n_epoch == 0 else ():
            shutil.rmtree(path, ignore_errors=True)
        return real(found, info)

    monkeypatch.setattr(loop, "scalar_metrics", removed_first)
    rows = evaluate(going, seal(1))
    assert rows[1]["state"] == "analysed"
    assert rows[0]["state"] == "left out"
    assert "its metrics failed" in rows[0]["notes"][-1]
    assert rows[0]["metrics"] == {}


def test_what_a_killed_process_left_at_its_metrics_is_finished(work) -> None:
    _, seal, evaluate = work
    first = seal(0)
    rows = evaluate(first)
    write_figures(first.parent, {**rows[0], "state": "metrics", "analysis": None})
    states = {epoch: row["state"] for epoch, row in evaluate(first, first, seal(1)).items()}
    assert states[1] == "analysed"
    assert states[0] in {"analysed", "overtaken"}


def test_a_pass_is_left_out_where_others_analyse_on_and_on(work, monkeypatch: pytest.MonkeyPatch) -> None:
    store, seal, evaluate = work
    monkeypatch.setattr(loop, "_TURN_SECONDS", 1.0)
    rank = seal(0)
    begun = time.monotonic()
    with locked(store.root):
        row = evaluate(rank)[0]
    assert time.monotonic() - begun < 20
    assert row["state"] == "left out"
    assert "other trainings" in row["notes"][-1]
    assert row["metrics"]["accuracy"] is not None


def test_a_full_disk_is_not_taken_for_records_that_went(work, monkeypatch: pytest.MonkeyPatch) -> None:
    _, seal, evaluate = work
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/full")
    note = evaluate(seal(0))[0]["notes"][-1]
    assert note.startswith("the analysis failed")


def test_folders_of_killed_processes_are_removed(work, tmp_path: Path) -> None:
    _, seal, evaluate = work
    left, busy, young = (tmp_path / f"mld-live-{name}" for name in ("left", "busy", "young"))
    for folder in (left, busy, young):
        (folder / "inner").mkdir(parents=True)
    for folder in (left, busy):
        os.utime(folder, (0, 0))
    with locked(busy):
        evaluate(seal(0))
    assert {path.name for path in tmp_path.glob("mld-live-*")} == {"mld-live-busy", "mld-live-young"}


def test_a_pass_without_rows_says_so(work) -> None:
    _, seal, evaluate = work
    row = evaluate(seal(0, rows=0))[0]
    assert (row["state"], row["notes"]) == ("left out", ["it has no rows that can be read"])
