"""Figures of rooms: against hand-worked cases, and against the definition written out box by box."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from boxes_store import write

from mld_core.evaluation.detection.records import read_boxes
from mld_core.evaluation.detection3d.figures import indoor_state
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.indoor import OVERLAPS, IndoorState, indoor_figures
from mld_core.geometry.iou import iou_3d
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.views.tables import metric_rows
from mld_core.views.words.texts_detection import DETECTION_METRICS

BOX = [0.0, 0, 0, 1, 1, 1, 0]


def boxes(frame: list[int], label: list[int], box: Any, score: list[float]) -> Predictions:
    rows = np.array(box, np.float64).reshape(-1, 7)
    return Predictions(np.array(frame, np.int64), np.array(label, np.int64), np.array(score), rows)


def truths(frame: list[int], label: list[int], box: Any, ignore: list[bool] | None = None) -> Truths:
    rows = np.array(box, np.float64).reshape(-1, 7)
    no = np.zeros(len(rows), np.bool_)
    kept = no if ignore is None else np.array(ignore)
    return Truths(np.array(frame, np.int64), np.array(label, np.int64), rows, kept, no)


def figures(found: Predictions, true: Truths, n_class: int) -> Any:
    return indoor_figures([IndoorState.of(found, true, n_class)])


def moved(x: float) -> list[float]:
    return [x, *BOX[1:]]


def test_an_overlap_must_exceed_the_bound_and_the_best_truth_alone_is_asked() -> None:
    # A cube moved by 0.6 of its side overlaps by 0.4 / 1.6, which is 0.25 and not above it.
    assert figures(boxes([0], [0], moved(0.6), [0.9]), truths([0], [0], BOX), 1)["indoor_map_25"] == 0
    assert figures(boxes([0], [0], moved(0.59), [0.9]), truths([0], [0], BOX), 1)["indoor_map_25"] == 1
    # The second's best truth is taken; that it overlaps the other by more than the bound does not help it.
    found = boxes([0, 0], [0, 0], [moved(0.1), moved(0.2)], [0.9, 0.8])
    made = figures(found, truths([0, 0], [0, 0], [BOX, moved(0.7)]), 1)
    assert made["indoor_map_25"] == made["indoor_mar_25"] == 0.5


def test_a_class_that_does_not_occur_and_ignored_truths_count_nowhere() -> None:
    found = boxes([0, 0], [0, 1], [BOX, BOX], [0.9, 0.8])
    assert figures(found, truths([0], [0], BOX), 3)["indoor_map_25"] == 1
    assert figures(found, truths([0, 0], [0, 1], [BOX, BOX], [False, True]), 3)["indoor_map_25"] == 1
    assert figures(found, truths([0, 0], [0, 2], [BOX, BOX]), 3)["indoor_map_25"] == 0.5, "never predicted"
    assert figures(found, truths([], [], []), 3) == {}
    nothing = boxes([], [], [], [])
    assert figures(nothing, truths([0], [0], BOX), 1) == dict.fromkeys(
        ("indoor_map_25", "indoor_mar_25", "indoor_map_50", "indoor_mar_50"), 0.0
    )


def rooms(seed: int) -> tuple[Predictions, Truths, int]:
    """Rooms with crowded furniture of four classes, of which one is predicted only, and many false boxes."""
    rng = np.random.default_rng(seed)
    count, frames = 60, 8
    frame = np.sort(rng.integers(0, frames, count))
    box = np.column_stack(
        [rng.uniform(-2, 2, (count, 3)), rng.uniform(0.5, 2, (count, 3)), rng.uniform(-3, 3, count)]
    )
    label = rng.integers(0, 3, count)
    again = np.sort(np.concatenate([np.arange(count)[rng.random(count) < 0.8], rng.integers(0, count, 60)]))
    noise = rng.normal(0, 0.12, (len(again), 7))
    said = np.where(rng.random(len(again)) < 0.1, 3, label[again])
    near = box[again] + noise
    near[:, 3:6] = near[:, 3:6].clip(0.2)
    found = Predictions(frame[again], said, rng.random(len(again)), near)
    no = np.zeros(count, np.bool_)
    return found, Truths(frame, label, box, no, no), frames


def written_out(found: Predictions, true: Truths, overlap: float) -> tuple[float, float]:
    """MAP and mAR as the definition reads, one box after the other, the area in steps of recall."""
    precisions, recalls = [], []
    for label in np.unique(true.label):
        own = np.flatnonzero(true.label == label)
        taken: set[int] = set()
        points, right = [], 0
        rows = np.flatnonzero(found.label == label)
        for n, row in enumerate(rows[np.argsort(-found.score[rows])], start=1):
            there = own[true.frame[own] == found.frame[row]]
            shared = iou_3d(found.box[[row]], true.box[there])[0] if len(there) else np.zeros(1)
            best = int(shared.argmax())
            if shared[best] > overlap and int(there[best]) not in taken:
                taken.add(int(there[best]))
                right += 1
            points.append((right / len(own), right / n))
        steps = [max(p for r, p in points if r >= k / len(own)) for k in range(1, right + 1)]
        precisions.append(sum(steps) / len(own))
        recalls.append(right / len(own))
    return float(np.mean(precisions)), float(np.mean(recalls))


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_the_definition_and_of_parts_put_together(seed: int) -> None:
    found, true, frames = rooms(seed)
    made = figures(found, true, 4)
    for overlap in OVERLAPS:
        precision, recall = written_out(found, true, overlap)
        assert 0.05 < precision < 0.95
        assert made[f"indoor_map_{100 * overlap:.0f}"] == pytest.approx(precision, abs=1e-12)
        assert made[f"indoor_mar_{100 * overlap:.0f}"] == pytest.approx(recall, abs=1e-12)
    half = frames // 2
    parts = [
        IndoorState.of(found.take(found.frame // half == k), true.take(true.frame // half == k), 4)
        for k in range(2)
    ]
    assert indoor_figures(parts) == pytest.approx(made, abs=1e-12)


def records_of(folder: Any, calibrations: list[str | None], ranks: int = 1) -> Any:
    found, true, frames = rooms(0)
    rows = []
    for k in range(frames):
        p, t = found.take(found.frame == k), true.take(true.frame == k)
        rows.append(
            {
                "input_id": f"{k}",
                "truths": {"box": t.box, "label": t.label},
                "detections": {"box": p.box, "label": p.label, "score": p.score},
                "calibration": calibrations[k % len(calibrations)],
            }
        )
    store, run = Store(folder), RunKey("rooms", "v1")
    write(store, run, "val", rows, "detection3d", class_names=list("abcd"), world_size=ranks)
    (selection,) = select(store, run, n_epoch=0)
    return read_boxes(selection, store.run_info(run))


def test_rooms_alone_have_them(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "all"))
    records = records_of(tmp_path / "all", ['{"depth_frame": true}'])
    found, true, _ = rooms(0)
    expected = figures(found, true, 4)
    assert indoor_figures([indoor_state(records)]) == pytest.approx(expected, abs=1e-5)
    result = Evaluator("rooms", "v1").request_evaluation(n_epoch=None)
    row = result.metrics_summary(full=True).iloc[0]
    (shown,) = metric_rows(result, DETECTION_METRICS)
    assert shown["indoor_map_25"] == pytest.approx(expected["indoor_map_25"], abs=1e-5), "on the page"
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-5), name
    for said in (["{}"], [None], ['{"depth_frame": true}', "{}"]):
        other = records_of(tmp_path / f"{len(said)}{said[0]}".replace("/", ""), said)
        assert indoor_figures([indoor_state(other)]) == {}


def test_in_rounds_they_are_those_of_memory(tmp_path: Any) -> None:
    records_of(tmp_path, ['{"depth_frame": true}'], ranks=3)
    made = [
        Evaluator("rooms", "v1", store=tmp_path)
        .request_evaluation(engine, options={"threads": 2, "repeats": 1, "engine": engine})
        .metrics_summary(full=True)
        .filter(like="indoor")
        .iloc[0]
        .to_dict()
        for engine in ("rounds", "memory")
    ]
    assert len(made[0]) == 4
    assert made[0] == pytest.approx(made[1], abs=1e-12)
