"""The nuScenes metrics equal those of nuscenes-devkit, which lives in .venv-mmdet3d (numpy below 2)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed: run this in .venv-mmdet3d")


from frames_3d import NUSCENES, make_frames
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionMetrics
from pyquaternion import Quaternion

from mld_core.evaluation.metrics.nuscenes import (
    DISTANCES,
    ERRORS,
    NuscenesProfile,
    NuscenesState,
    match_nuscenes,
    nuscenes_metrics,
)

TP_NAMES = dict(zip(ERRORS, ("trans_err", "scale_err", "orient_err", "vel_err"), strict=True))
CONFIG = config_factory("detection_cvpr_2019")


ATTRIBUTES = (
    *("cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down"),
    *("vehicle.moving", "vehicle.parked", "vehicle.stopped"),
    "",
)


def as_devkit(frame, label, box, velocity, frames, score=None, n_points=None, attribute=None) -> EvalBoxes:
    """The devkit's boxes, filtered by range and points as `filter_eval_boxes` does."""
    made = EvalBoxes()
    for number in range(frames):
        made.add_boxes(str(number), [])
    for row in range(len(frame)):
        name = NUSCENES[label[row]]
        x, y, z, w, l, h, yaw = map(float, box[row])  # noqa: E741
        if n_points is not None and n_points[row] == 0:
            continue
        one = DetectionBox(
            sample_token=str(frame[row]),
            translation=(x, y, z),
            size=(w, l, h),
            rotation=tuple(Quaternion(axis=[0, 0, 1], radians=yaw).elements),
            velocity=tuple(map(float, velocity[row])),
            ego_translation=(x, y, z),
            detection_name=name,
            detection_score=-1.0 if score is None else float(score[row]),
            attribute_name="" if attribute is None else ATTRIBUTES[attribute[row]],
        )
        if one.ego_dist < CONFIG.class_range[name]:
            made.add_boxes(str(frame[row]), [one])
    return made


def devkit(data, frames, said=None, true_said=None):
    """The devkit's own `DetectionEval.evaluate`, step by step (its class needs the whole database)."""
    p, t = data.predictions, data.truths
    found = as_devkit(p.frame, p.label, p.box, data.velocities, frames, score=p.score, attribute=said)
    true = as_devkit(
        t.frame, t.label, t.box, data.true_velocities, frames, n_points=data.n_points, attribute=true_said
    )
    metrics, curves = DetectionMetrics(CONFIG), {}
    for name in NUSCENES:
        for most in CONFIG.dist_ths:
            curves[name, most] = accumulate(true, found, name, center_distance, most)
            metrics.add_label_ap(name, most, calc_ap(curves[name, most], 0.1, 0.1))
        for error in (*TP_NAMES.values(), "attr_err"):
            skipped = {
                "traffic_cone": {"attr_err", "vel_err", "orient_err"},
                "barrier": {"attr_err", "vel_err"},
            }
            value = np.nan if error in skipped.get(name, ()) else calc_tp(curves[name, 2.0], 0.1, error)
            metrics.add_label_tp(name, error, value)
    return metrics, curves


def ours(data, parts=1):
    profile = NuscenesProfile.of(NUSCENES)
    p, t = data.predictions, data.truths
    edges = np.linspace(0, 1 + max(p.frame.max(initial=0), t.frame.max(initial=0)), parts + 1).astype(int)
    states = []
    for low, high in pairwise(edges):
        a = slice(*np.searchsorted(p.frame, (low, high)))
        b = slice(*np.searchsorted(t.frame, (low, high)))
        states.append(
            match_nuscenes(
                p.take(a),
                t.take(b),
                profile,
                velocities=data.velocities[a],
                true_velocities=data.true_velocities[b],
                n_points=data.n_points[b],
            )
        )
    return nuscenes_metrics(NuscenesState.merge(states), profile)


@pytest.mark.parametrize(
    "setting",
    [
        {"seed": 0},
        {"seed": 1, "ties": True},
        {"seed": 2, "absent": (2, 8, 9)},
        {"seed": 3, "truths": 2, "detections": 6},
        {"seed": 4, "reach": 20.0, "ties": True},
        {"seed": 5, "unknown": 1.0},
    ],
)
def test_equal_to_the_devkit(setting) -> None:
    frames = 40
    data = make_frames(frames, **setting)
    theirs, curves = devkit(data, frames)
    mine = ours(data, parts=3)
    for c, name in enumerate(NUSCENES):
        for most in DISTANCES:
            assert mine.of_class(c)[f"ap_d{most:g}".replace(".", "")] == (
                pytest.approx(theirs.get_label_ap(name, most), abs=1e-6) if mine.truths[c] else None
            )
        for error, attribute in TP_NAMES.items():
            expected = theirs.get_label_tp(name, attribute)
            value = mine.of_class(c)[error]
            if mine.truths[c] == 0 or np.isnan(expected):
                assert value is None
                continue
            assert value == pytest.approx(expected, abs=1e-6)
            last = curves[name, 2.0].max_recall_ind
            if last > 0:
                np.testing.assert_allclose(
                    mine.curve[ERRORS.index(error), c, : last + 1],
                    getattr(curves[name, 2.0], attribute)[: last + 1],
                    atol=1e-6,
                )
    assert mine.mean_ap == pytest.approx(theirs.mean_ap, abs=1e-6)
    for error, attribute in TP_NAMES.items():
        assert mine.mean_error(error) == pytest.approx(theirs.tp_errors[attribute], abs=1e-6)
    without = (5 * theirs.mean_ap + sum(theirs.tp_scores[name] for name in TP_NAMES.values())) / 9
    assert mine.nds == pytest.approx(without, abs=1e-6)
    assert mine.nds * 9 / 10 == pytest.approx(theirs.nd_score, abs=1e-6), (
        "the devkit counts no attribute as 0"
    )


@pytest.mark.parametrize("absent", [(), (2, 6)])
def test_with_attributes_nds_is_the_devkits(absent) -> None:
    frames, rng = 30, np.random.default_rng(7)
    data = make_frames(frames, seed=7, absent=absent)
    true_said = rng.integers(-1, 8, len(data.truths))
    said = rng.choice(8, len(data.predictions))
    # Half of what stands in a frame has the attribute of a truth there.
    first = np.searchsorted(data.truths.frame, data.predictions.frame)
    near = (first < len(true_said)) & (rng.random(len(said)) < 0.5)
    said[near] = np.maximum(true_said[first[near]], 0)
    theirs, _ = devkit(data, frames, said, true_said)
    profile = NuscenesProfile.of(NUSCENES)
    p, t = data.predictions, data.truths
    state = match_nuscenes(
        p, t, profile, velocities=data.velocities, true_velocities=data.true_velocities,
        n_points=data.n_points, attributes=said, true_attributes=true_said,
    )  # fmt: skip
    mine = nuscenes_metrics(state, profile)
    assert mine.mean_error("aae") == pytest.approx(theirs.tp_errors["attr_err"], abs=1e-6)
    assert 0.3 < mine.mean_error("aae") < 1
    assert mine.summary()["maae"] == mine.mean_error("aae")
    assert mine.nds == pytest.approx(theirs.nd_score, abs=1e-6)
