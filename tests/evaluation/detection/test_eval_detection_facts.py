"""What the records say beside boxes: the score cut, the areas of the data set."""

import boxes_store
import numpy as np
import pytest

from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.coco import coco_metrics, match_coco
from mld_core.records.format.layout import RunKey, Store

BOX = np.array([[100.0, 100, 140, 140]], np.float32)


def _evaluated(root, frames, **more):
    store, run = Store(root), RunKey("det", "v1")
    boxes_store.write(store, run, "val", frames, "detection", class_names=["a"], **more)
    return Evaluator("det", "v1", store=root).request_evaluation(options={"repeats": 1, "progress": False})


def _frames(count=4, truths=None, **more):
    said = {"box": BOX, "label": [0], "score": [0.9]}
    true = {"box": BOX, "label": [0], **(truths or {})}
    return [{"input_id": f"f{k}", "detections": said, "truths": true, **more} for k in range(count)]


@pytest.mark.parametrize(("cut", "told"), [(0.25, True), (0.05, False), (0.001, False), (None, False)])
def test_a_cut_above_the_usual_is_told_beside_map(tmp_path, capsys, cut, told):
    result = _evaluated(tmp_path, _frames(score_thresh=cut))
    notes = [one["message"] for one in result.problems if one["kind"] == "score_thresh"]
    assert bool(notes) is told
    result.get_summary()
    shown = " ".join(capsys.readouterr().out.split())
    assert ("only boxes that score 0.25 or more are recorded" in shown) is told


def test_sizes_are_told_by_the_data_sets_area():
    frame, none = np.zeros(1, np.int64), np.zeros(1, np.bool_)
    found, true = Predictions(frame, frame, np.array([0.9]), BOX), Truths(frame, frame, BOX, none, none)
    by_box = coco_metrics(match_coco(found, true, 1)).summary()
    assert by_box["map_medium"] == 1
    assert by_box["map_small"] is None
    by_mask = coco_metrics(match_coco(found, true, 1, np.array([900.0]))).summary()
    assert by_mask["map_small"] == 1
    assert by_mask["map_medium"] is None
    unknown = coco_metrics(match_coco(found, true, 1, np.array([np.nan]))).summary()
    assert unknown["map_medium"] == 1


def test_a_recorded_area_reaches_the_metrics(tmp_path):
    truths = {"area": [900.0]}
    result = _evaluated(tmp_path, _frames(truths=truths), label_fields=[{"name": "area", "type": "float"}])
    row = result.metrics_summary(full=True).iloc[0]
    assert row["map_small"] == 1
    assert row["map_medium"] != row["map_medium"], "no truth of this size"
