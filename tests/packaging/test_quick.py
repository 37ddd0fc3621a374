"""Which files of tests `make quick` takes for a change."""

import pytest
from folders import ROOT
from quick import Near, fitting, module_of, near_tests

pytest.importorskip("grimp", reason="import-linter (extra dev) brings the graph of imports")


def test_modules_have_the_name_they_are_imported_by():
    assert module_of(ROOT / "mld_core" / "geometry" / "iou.py") == "mld_core.geometry.iou"
    assert (
        module_of(ROOT / "integrations" / "ml_debugger" / "evaluator" / "__init__.py")
        == "ml_debugger.evaluator"
    )
    assert module_of(ROOT / "examples" / "digits_lightning.py") is None


def test_the_tests_of_the_room_come_first_and_strangers_not_at_all():
    near = near_tests([ROOT / "mld_core" / "evaluation" / "metrics" / "coco.py"], {})
    names = [one.path.name for one in near]
    distance = {one.path.name: one.distance for one in near}
    assert distance["test_eval_detection_coco.py"] == 0
    assert distance["test_eval_detection_codes.py"] == 1
    assert [one.distance for one in near] == sorted(one.distance for one in near)
    assert "test_geometry_nms.py" not in names


def test_a_helper_of_tests_brings_those_that_use_it():
    near = near_tests([ROOT / "tests" / "parts" / "data" / "kitti_frames.py"], {})
    wanted = {"test_eval_kitti.py", "test_eval_kitti_figures.py", "test_eval_road_rounds.py"}
    wanted |= {"test_ray_rounds.py", "test_mmdet3d_kitti_metrics.py", "test_mmdet3d_kitti_run.py"}
    names = {one.path.name for one in near}
    assert wanted <= names
    assert not names & {"test_eval_detection_coco.py", "test_eval_nuscenes.py", "test_quick.py"}


def test_what_does_not_fit_is_left_and_what_is_changed_is_not():
    one, two, three = (ROOT / name for name in ("one", "two", "three"))
    run, left = fitting([Near(-1, 90.0, one), Near(0, 20.0, two), Near(1, 8.0, three)], 100.0)
    assert [near.path for near in run] == [one, three]
    assert [near.path for near in left] == [two]
