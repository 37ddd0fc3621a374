"""KITTI's figures from records: the image metric where there are image boxes, difficulty by rule, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from boxes_store import write
from kitti_frames import NAMES, make_kitti
from scipy.spatial.transform import Rotation

from mld_core.evaluation.detection.records import read_boxes
from mld_core.evaluation.detection3d.kitti import kitti_figures, kitti_state, levels
from mld_core.evaluation.detection3d.places import true_image_boxes
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.metrics.camera import image_boxes, observation_angles
from mld_core.evaluation.metrics.kitti import KittiFrames, difficulties, kitti_metrics
from mld_core.geometry.conventions import to_standard
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.views.tables import metric_rows
from mld_core.views.words.texts_detection import DETECTION_METRICS

FRAMES = 60
CAMERA = np.array([[0, -1, 0, 0], [0, 0, -1, -0.1], [1, 0, 0, -0.3], [0, 0, 0, 1.0]])
PROJECT = np.array([[700, 0, 600, 40], [0, 700, 180, 0.2], [0, 0, 1, 0.003]])


def made() -> tuple[KittiFrames, Any, Any]:
    """The frames, with image boxes of the truths as an annotator draws them: the projected ones, not quite."""
    data, (occlusion, truncation) = make_kitti(FRAMES, seed=3)
    drawn = image_boxes(data.truths.box, CAMERA, PROJECT)
    drawn += np.random.default_rng(0).normal(0, 0.5, drawn.shape)
    level = difficulties(drawn[:, 3] - drawn[:, 1], occlusion, truncation)
    return replace(data, true_image_box=drawn, difficulty=level), occlusion, truncation


def frames_of(
    part: range, leave_out: tuple[str, ...] = (), *, calibrated: bool = True
) -> list[dict[str, Any]]:
    """The frames of `make_kitti`; the predictions' image boxes are what the camera makes of them."""
    data, occlusion, truncation = made()
    frames = []
    for k in part:
        t, p = data.truths.frame == k, data.predictions.frame == k
        said: dict[str, Any] = {"lidar2cam": CAMERA.tolist(), "cam2img": PROJECT.tolist()}
        said["dont_care"] = data.dontcare[data.dontcare_frame == k].tolist()
        true = {
            "box": data.truths.box[t],
            "label": data.truths.label[t],
            "ignore": data.truths.ignore[t],
            "difficulty": data.difficulty[t],
            "occlusion": occlusion[t].astype(float),
            "truncation": truncation[t],
            "image_box": data.true_image_box[t],
        }
        found = {
            "box": data.predictions.box[p],
            "label": data.predictions.label[p],
            "score": data.predictions.score[p],
        }
        frames.append(
            {
                "input_id": f"f{k:03d}",
                "truths": {name: values for name, values in true.items() if name not in leave_out},
                "detections": found,
                **({"calibration": json.dumps(said)} if calibrated else {}),
            }
        )
    return frames


def read_of(tmp_path: Any, frames: list[dict[str, Any]], names: Sequence[str]) -> Any:
    """Frames, written to a store and read."""
    store, run = Store(tmp_path), RunKey("cars", "v1")
    write(store, run, "val", frames, "detection3d", class_names=list(names))
    (selection,) = select(store, run, n_epoch=0)
    return read_boxes(selection, store.run_info(run))


TILTED = np.eye(4)
"""LiDAR to camera, the camera looking down by three degrees, half a degree aside."""
TILTED[:3, :3] = CAMERA[:3, :3] @ Rotation.from_euler("yz", [-3, 0.5], degrees=True).as_matrix()
TILTED[:3, 3] = 0, -0.1, -0.3


def in_lidar(box: np.ndarray) -> np.ndarray:
    """Boxes upright in the tilted camera (forward, left, up), in the LiDAR's frame as KITTI's tools move them."""
    x, y, z, w, length, h, yaw = box.T
    rows = np.column_stack([-y, -(z - h / 2), x, length, h, w, -yaw - np.pi / 2])
    return to_standard(rows, "kitti_camera", TILTED)[0]


def test_boxes_are_compared_upright_in_the_camera(tmp_path: Any) -> None:
    """As KITTI's tools do: with a tilted camera a LiDAR's upright boxes overlap by another share."""
    data, _, _ = made()
    frames = frames_of(range(FRAMES))
    for one in frames:
        said = {**json.loads(one["calibration"]), "lidar2cam": TILTED.tolist()}
        one["calibration"] = json.dumps(said)
        one["truths"]["box"] = in_lidar(one["truths"]["box"])
        one["detections"]["box"] = in_lidar(one["detections"]["box"])
    found, _ = figures(read_of(tmp_path, frames, NAMES))
    straight = CAMERA.copy()
    straight[:3, 3] = 0
    image = image_boxes(data.predictions.box, straight, PROJECT, behind=True)
    regions = {"dontcare_frame": data.dontcare_frame, "dontcare": data.dontcare}
    expected = kitti_metrics(replace(data, image_box=image, **regions)).summary()
    for name in expected:
        if name.startswith("ap40"):
            assert found[name] == pytest.approx(expected[name], abs=1e-6), name


def recorded(
    tmp_path: Any,
    *,
    leave_out: tuple[str, ...] = (),
    calibrated: bool = True,
    part: range = range(FRAMES),
) -> Any:
    """The frames of `make_kitti` as records."""
    return read_of(tmp_path, frames_of(part, leave_out, calibrated=calibrated), NAMES)


def expected(*, regions: bool = True, classes: int = len(NAMES)) -> dict[str, float | None]:
    """The figures of the same frames, computed from the arrays; means are over the first `classes`."""
    data, _, _ = made()
    box = data.predictions.box.astype(np.float32).astype(float)
    true = data.truths.box.astype(np.float32).astype(float)
    frames = KittiFrames(
        data.predictions,
        data.truths,
        data.difficulty,
        NAMES,
        image_boxes(box, CAMERA, PROJECT),
        data.true_image_box,
        observation_angles(box, CAMERA)[1],
        observation_angles(true, CAMERA)[1],
        *((data.dontcare_frame, data.dontcare) if regions else ()),
    )
    found = kitti_metrics(frames)
    return replace(found, ap=found.ap[:, :classes], aos=found.aos[:, :classes]).summary()


def without_vans(tmp_path: Any, *, named: bool = True) -> Any:
    """The same frames of a run that has no class of vans; `named`: calibrations name those that are there."""
    data, _, _ = made()
    van = NAMES.index("Van")
    frames = []
    for one in frames_of(range(FRAMES)):
        k = int(one["input_id"][1:])
        rows = np.flatnonzero(data.truths.frame == k)
        own = data.truths.label[rows] != van
        said = json.loads(one["calibration"])
        if named:
            said["neighbours"] = [
                {
                    "name": "Van",
                    "row": int(own[:at].sum()),
                    "box": data.truths.box[rows[at]].tolist(),
                    "image_box": data.true_image_box[rows[at]].tolist(),
                }
                for at in np.flatnonzero(~own)
            ]
        truths = {name: values[own] for name, values in one["truths"].items()}
        frames.append({**one, "truths": truths, "calibration": json.dumps(said)})
    return read_of(tmp_path, frames, NAMES[:van])


def test_a_van_is_ignored_where_it_is_no_class_of_the_run(tmp_path: Any) -> None:
    found, notes = figures(without_vans(tmp_path / "a"))
    assert found == pytest.approx(expected(classes=NAMES.index("Van")), abs=1e-6)
    assert [note[:40] for note in notes] == []
    plain, notes = figures(without_vans(tmp_path / "b", named=False))
    assert plain["ap40_3d_hard"] < found["ap40_3d_hard"] - 0.001
    assert "van is no class of this run" in notes[0]
    assert f"of {FRAMES} of {FRAMES} frames" in notes[0]


@pytest.mark.parametrize(
    "wrong", [7, {"name": "Van"}, {"name": "Van", "row": 0, "box": [1], "image_box": [1]}]
)
def test_neighbours_that_are_none_are_said(tmp_path: Any, wrong: Any) -> None:
    frames = frames_of(range(3))
    for one in frames:
        said = {**json.loads(one["calibration"]), "neighbours": [wrong]}
        one["calibration"] = json.dumps(said)
    _, notes = figures(read_of(tmp_path, frames, ("Car", "Pedestrian", "Cyclist", "Tram")))
    assert "of 3 of 3 frames" in notes[0]


def figures(records: Any) -> Any:
    """Of a pass as it is."""
    return kitti_figures([kitti_state(records)], records.class_names)


def test_image_boxes_give_the_image_metric(tmp_path: Any) -> None:
    found, notes = figures(recorded(tmp_path))
    assert found == pytest.approx(expected(), abs=1e-6)
    assert 0.01 < found["ap40_image_moderate"] < 1
    assert found["ap40_image_moderate"] != pytest.approx(
        expected(regions=False)["ap40_image_moderate"], abs=1e-4
    )
    assert [note[:40] for note in notes] == ["KITTI's figures: person_sitting is no cl"]


def test_what_lies_beyond_the_limits_of_mmdetection3ds_metric_is_dropped(tmp_path: Any) -> None:
    limits, frames, near = [5, -10, -2.5, 40, 10, -0.5], frames_of(range(FRAMES)), frames_of(range(FRAMES))
    for one, other in zip(frames, near, strict=True):
        one["calibration"] = json.dumps({**json.loads(one["calibration"]), "limit_range": limits})
        found = other["detections"]
        bottom = found["box"][:, :3] - found["box"][:, 5:6] / 2 * [0, 0, 1]
        inside = ((bottom > limits[:3]) & (bottom < limits[3:])).all(axis=1)
        other["detections"] = {name: values[inside] for name, values in found.items()}
    told, expected = (
        figures(read_of(tmp_path / name, given, NAMES))[0] for name, given in (("a", frames), ("b", near))
    )
    for name in expected:
        if name.startswith("ap40"):
            assert told[name] == pytest.approx(expected[name], abs=1e-9), name
    assert told["ap40_3d_moderate"] != pytest.approx(figures(recorded(tmp_path / "c"))[0]["ap40_3d_moderate"])


@pytest.mark.parametrize("wrong", [None, [1, 2], "far", [0, 0, 0, 1, 1, float("nan")], {"x": 1}])
def test_limits_that_are_none_drop_nothing(tmp_path: Any, wrong: Any) -> None:
    frames = frames_of(range(FRAMES))
    for one in frames:
        one["calibration"] = json.dumps({**json.loads(one["calibration"]), "limit_range": wrong})
    assert figures(read_of(tmp_path, frames, NAMES))[0] == pytest.approx(expected(), abs=1e-6)


def test_difficulty_follows_from_image_box_occlusion_and_truncation(tmp_path: Any) -> None:
    records = recorded(tmp_path, leave_out=("difficulty",))
    np.testing.assert_array_equal(levels(records, true_image_boxes(records)), made()[0].difficulty)
    assert figures(records)[0] == pytest.approx(expected(), abs=1e-6)


def test_parts_of_a_pass_come_to_the_figures_of_the_whole(tmp_path: Any) -> None:
    """As rounds over its parts do; where one part has no image boxes the whole has no image metric."""
    half = FRAMES // 2
    first, second = (
        recorded(tmp_path / name, part=part)
        for name, part in (("a", range(half)), ("b", range(half, FRAMES)))
    )
    found, _ = kitti_figures([kitti_state(first), kitti_state(second)], NAMES)
    assert found == pytest.approx(expected(), abs=1e-6)
    bare = recorded(tmp_path / "c", part=range(half, FRAMES), leave_out=("image_box",))
    found, notes = kitti_figures([kitti_state(first), kitti_state(bare)], NAMES)
    assert not [name for name in found if "image" in name]
    assert found["ap40_3d_moderate"] == pytest.approx(expected()["ap40_3d_moderate"], abs=1e-6)
    assert (
        f"{len(bare.truths)} of {len(first.truths) + len(bare.truths)} true boxes have no image box"
        in notes[0]
    )


@pytest.mark.parametrize(
    ("leave_out", "calibrated", "said"),
    [
        (("image_box",), True, "no true box has an image box"),
        ((), False, "not every judged frame has its calibration"),
    ],
)
def test_without_image_boxes_the_rest_is_computed_and_the_reason_said(
    tmp_path: Any, leave_out: tuple[str, ...], calibrated: bool, said: str
) -> None:
    found, notes = figures(recorded(tmp_path, leave_out=leave_out, calibrated=calibrated))
    assert 0 < found["ap40_3d_moderate"] < 1
    assert not [name for name in found if "image" in name]
    assert said in notes[0]


def test_where_no_difficulty_is_known_that_is_said(tmp_path: Any) -> None:
    found, (note,) = figures(recorded(tmp_path, leave_out=("difficulty", "truncation")))
    assert found == {}
    assert "neither the difficulty is recorded nor" in note
    assert figures(recorded(tmp_path / "b", leave_out=("difficulty", "image_box"))) == ({}, ())


def test_a_result_has_the_figures_and_no_column_of_image_boxes(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    recorded(tmp_path)
    result = Evaluator("cars", "v1").request_evaluation(options={"repeats": 1})
    (row,) = result.metrics_summary(full=True).to_dict("records")
    assert row["ap40_image_moderate"] == pytest.approx(expected()["ap40_image_moderate"], abs=1e-6)
    (shown,) = metric_rows(result, DETECTION_METRICS)
    for kind in ("3d", "bev", "image"):
        assert shown[f"ap40_{kind}_moderate"] == pytest.approx(row[f"ap40_{kind}_moderate"], abs=1e-5)
    assert not {"image_box", "field_image_box"} & set(result.get_issues("val").columns)
    assert any("person_sitting is no class" in one["message"] for one in result.problems)
