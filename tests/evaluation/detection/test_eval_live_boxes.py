"""Detections as they are evaluated beside a training: an evaluation's figures, and a sample's shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import road_store as roads
import simulated_detector as simulation

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.live import boxes
from mld_core.evaluation.live.measuring import scalar_metrics
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select

RUN = RunKey("yolo", "v1")


def recorded(folder: Path, task: str):
    """A pass of simulated detections."""
    store = Store(folder)
    store.ensure_run(RUN, {"task": task, "n_class": 6 if task == "detection" else 3})
    if task == "detection":
        simulation.write(store, RUN, "val", simulation.simulate(200, seed=1))
    else:
        _, frames, _ = roads.make_scenes(40)
        rng = np.random.default_rng(0)
        roads.write_pass(store, RUN, "val", frames, [roads.detect(frame, rng) for frame in frames], 0)
    return select(store, RUN)[0]


@pytest.mark.parametrize("task", ["detection", "detection3d"])
def test_metrics_are_an_evaluations(task: str, tmp_path: Path) -> None:
    selection = recorded(tmp_path / "store", task)
    info = selection.store.run_info(RUN)
    made = tmp_path / "work"
    made.mkdir()
    found = boxes.analyse_boxes(selection, info, Workers(1), made)
    result = Evaluator(*vars(RUN).values(), store=selection.store.root).request_evaluation(
        options={"repeats": 1}
    )
    (whole,) = result.metrics_summary(full=True).to_dict("records")
    known = {name: value for name, value in found.metrics.items() if name in whole and value is not None}
    same = {name: value for name, value in known.items() if value == value}
    same.pop("missing_ranks")
    assert len(same) > 15
    assert {name: whole[name] for name in same} == same
    assert found.analysis is not None
    assert found.analysis["findings"]
    counts = scalar_metrics(selection, info)
    assert counts["counts"] == selection.n_rows
    assert counts["n_recorded"] > counts["n_truths"] > 0


def test_of_many_boxes_some_frames_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = recorded(tmp_path / "store", "detection")
    monkeypatch.setattr(boxes, "BOX_ROWS", 700)
    monkeypatch.setattr(boxes, "FIT_ROWS", 200)
    made = tmp_path / "work"
    made.mkdir()
    found = boxes.analyse_boxes(selection, selection.store.run_info(RUN), Workers(1), made)
    assert found.notes[0].startswith("metrics are of ")
    assert found.analysis is not None
    assert 100 < found.analysis["rows"] < 300
    assert found.analysis["of"] == pytest.approx(1600, rel=0.5)
