"""The 3D tracer: every form of input and truth, memory, limits, range, a detector added by subclass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_det3d as det
import fake_mmdet3d as mm
import fake_openpcdet as pcd
import numpy as np
import pytest
import torch
from fake_parts3d import RANGE, FakeOldBoxes, clouds
from torch import Tensor, nn

from ml_debugger.records import load
from ml_debugger.tracer import Detection3DOutput
from ml_debugger.training import ObjectDetection3DTracer
from ml_debugger.training.object_detection_3d.object_detection_3d_torchtracer import (
    ObjectDetection3DTrainingTorchTracer,
)
from mld_core.records.format.layout import RunKey, Store
from mld_core.tracing.guard import ConfigurationProblem


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    torch.manual_seed(0)
    return tmp_path


def table(family: str = "samples") -> Any:
    return load("net", "v", family).to_pandas()


def truth(n: int, *, velocity: bool = True) -> dict[str, Any]:
    boxes = np.tile([3.0, 1.0, 0.0, 1.7, 4.2, 1.5, 0.1], (n, 1)).astype(np.float32)
    found = {"boxes_3d": boxes, "labels_3d": np.zeros(n, np.int64)}
    return {**found, "velocities": np.ones((n, 2), np.float32)} if velocity else found


def metas(n: int) -> list[dict[str, Any]]:
    return [{"box_type_3d": FakeOldBoxes} for _ in range(n)]


def test_a_cloud_a_list_and_a_dict_give_the_same_records() -> None:
    model = mm.FakeOldDetector(mm.FakeCenterHead()).eval()
    two = clouds(2)
    tracer = ObjectDetection3DTracer(model, "net", "v")
    tracer({"points": two, "img_metas": metas(2)}, [truth(1), truth(2)], ["a", "b"], "val", 0)
    tracer({"points": two[:1], "img_metas": metas(1)}, [truth(1)], ["a2"], "val", 0)
    native = {"points": [two], "img_metas": [metas(2)]}
    tracer(native, {"boxes_3d": [truth(1)["boxes_3d"], np.zeros((0, 7))], "labels_3d": [[0], []]},
           ["c", "d"], "val", 0)  # fmt: skip
    tracer.wait_for_save(0)
    assert not tracer.guard.problems, tracer.guard.tracebacks
    rows = table().set_index("input_id")
    assert rows.n_truths.to_dict() == {"a": 1, "b": 2, "a2": 1, "c": 1, "d": 0}
    assert rows.input_hash["a"] == rows.input_hash["a2"] == rows.input_hash["c"]
    assert rows.input_hash["b"] == rows.input_hash["d"] != rows.input_hash["a"]
    assert rows.n_detections["a"] == rows.n_detections["a2"] == rows.n_detections["c"] > 0
    found = table("detections")
    assert found.velocity.notna().all()
    assert len(table("vectors")) == len(found)
    np.testing.assert_allclose(table("truths").box.iloc[0], truth(1)["boxes_3d"][0])


def test_velocities_are_optional_and_unlabelled_frames_are_recorded() -> None:
    model = mm.FakeOldDetector(mm.FakeCenterHead(velocity=False)).eval()
    tracer = ObjectDetection3DTracer(model, "net", "v")
    batch = {"points": clouds(2), "img_metas": metas(2)}
    tracer(batch, [truth(2, velocity=False), None], ["a", "b"], "val", 0)
    tracer(batch, None, ["c", "d"], "val", 0)
    tracer.wait_for_save(0)
    assert table().set_index("input_id").labelled.to_dict() == {"a": True, "b": False, "c": False, "d": False}
    assert "velocity" not in table("detections") or table("detections").velocity.isna().all()
    assert not tracer.guard.problems, tracer.guard.tracebacks


def test_image_boxes_of_true_boxes_are_recorded_where_there_are_some() -> None:
    model = mm.FakeOldDetector(mm.FakeCenterHead()).eval()
    tracer = ObjectDetection3DTracer(model, "net", "v")
    batch = {"points": clouds(2), "img_metas": metas(2)}
    tracer(batch, [truth(1), truth(1)], ["a", "b"], "val", 0)
    drawn = {**truth(2), "image_boxes": torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])}
    tracer(batch, [drawn, truth(1)], ["c", "d"], "val", 0)
    tracer(
        batch, [{**truth(1), "image_boxes": np.zeros((2, 4))}, truth(0)], ["e", "f"], "val", 0
    )  # not (1, 4)
    tracer.wait_for_save(0)
    assert not tracer.guard.problems, tracer.guard.tracebacks
    rows = load("net", "v", "truths").to_pylist()
    assert {row["input_id"]: row["image_box"] for row in rows if row["input_id"] != "c"} == dict.fromkeys(
        "abde"
    )
    assert [row["image_box"] for row in rows if row["input_id"] == "c"] == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_a_provider_is_asked_for_frames_without_truth() -> None:
    asked: list[Any] = []

    class Provider:
        def get(self, input_ids: list[str], dataset_type: str) -> Any:
            asked.append((input_ids, dataset_type))
            return [truth(len(name)) for name in input_ids]

    model = mm.FakeOldDetector(mm.FakeCenterHead()).eval()
    tracer = ObjectDetection3DTracer(model, "net", "v", ground_truth_provider=Provider())
    tracer({"points": clouds(2), "img_metas": metas(2)}, None, ["a", "bbb"], "val", 0)
    tracer.wait_for_save(0)
    assert asked == [(["a", "bbb"], "val")]
    assert table().n_truths.tolist() == [1, 3]


def test_openpcdet_batches_bring_truth_ids_and_frames_of_their_own() -> None:
    model = pcd.FakeTemplate(pcd.FakeCenterHead()).eval()
    rows = torch.zeros(2, 2, 8)
    rows[:, 0] = torch.tensor([3.0, 1.0, 0.0, 4.2, 1.7, 1.5, 0.1, 3.0])
    rows[1, 1] = torch.tensor([5.0, 1.0, 0.0, 4.2, 1.7, 1.5, 0.1, 1.0])
    tracer = ObjectDetection3DTracer(model, "net", "v")
    tracer(pcd.batch_of(clouds(2), rows.clone()), None, None, "val", 0)
    alone = pcd.batch_of(clouds(2)[:1], rows[:1].clone())
    tracer(alone, None, ["again"], "val", 0)
    model.train()
    batch = pcd.batch_of(clouds(2), rows.clone())
    tracer(batch, None, None, "train", 0)  # losses only; and the class column is overwritten
    assert batch["gt_boxes"][0, 0, -1] == 1
    tracer.wait_for_save(0)
    assert not tracer.guard.problems, tracer.guard.tracebacks
    samples = table().set_index("input_id")
    assert set(samples.index) == {"000000", "000001", "again"}
    assert samples.n_truths.to_dict() == {"000000": 1, "000001": 2, "again": 1}
    assert samples.input_hash["000000"] == samples.input_hash["again"]
    truths = table("truths")
    assert truths.label.tolist() == [2, 2, 0, 2]
    np.testing.assert_allclose(truths.box.iloc[0], [3.0, 1.0, 0.0, 1.7, 4.2, 1.5, 0.1], atol=1e-6)


def test_openpcdet_takes_bare_points_through_its_own_data_set() -> None:
    model = pcd.FakeTemplate(pcd.FakeCenterHead()).eval()
    model.dataset.prepare_data = lambda data: data
    model.dataset.collate_batch = lambda items: {
        k: v.numpy() if isinstance(v, Tensor) else v
        for k, v in pcd.batch_of([torch.from_numpy(i["points"]) for i in items]).items()
    }
    tracer = ObjectDetection3DTracer(model, "net", "v")
    output = tracer(clouds(1)[0], None, ["a"], "val", 0)
    tracer.wait_for_save(0)
    assert table().n_detections.tolist() == [len(output[0][0]["pred_boxes"])]


def test_det3d_says_that_it_takes_its_own_batches_only() -> None:
    tracer = ObjectDetection3DTracer(det.FakePointPillars().eval(), "net", "v")
    with pytest.raises(ValueError, match="give its own batch"):
        tracer(clouds(1)[0], None, ["a"], "val", 0)
    tracer(det.example_of(clouds(2)), None, None, "val", 0)
    tracer.wait_for_save(0)
    assert table().n_detections.min() > 0


class FakeRemembering(mm.FakeOldDetector):
    """BEVFormer: what it says of a frame depends on the frames before."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__(head, parts=["img_backbone"])
        self.prev_frame_info = {"order": []}

    def simple_test(self, points: Any, metas: Any) -> list[Any]:
        assert len(points) == 1, "one frame at a time"
        self.prev_frame_info["order"].append(float(points[0].sum()))
        return super().simple_test(points, metas)


def test_detectors_with_a_memory_see_each_frame_once_and_in_order() -> None:
    model = FakeRemembering(mm.FakeQueryHead()).eval()
    three = clouds(3)
    tracer = ObjectDetection3DTracer(model, "net", "v", score_thresh=0.0)
    outputs = tracer({"points": three, "img_metas": metas(3)}, [truth(i) for i in range(3)],
                     ["a", "b", "c"], "val", 0)  # fmt: skip
    tracer.wait_for_save(0)
    assert model.prev_frame_info["order"] == [float(c.sum()) for c in three]
    assert model.calls == 3
    assert len(outputs) == 3
    assert table().set_index("input_id").n_truths.to_dict() == {"a": 0, "b": 1, "c": 2}


def test_a_range_is_read_or_asked_for() -> None:
    model = mm.FakeOldDetector(mm.FakeQueryHead(), parts=["img_backbone"]).eval()
    tracer = ObjectDetection3DTracer(model, "net", "v")
    tracer({"points": clouds(1), "img_metas": metas(1)}, None, ["a"], "val", 0)
    tracer.wait_for_save(0)
    info = Store().run_info(RunKey("net", "v"))
    assert info["pc_range"] == RANGE
    assert (info["family"], info["layout"], info["head"]) == ("BEVFormer", "mmdet3d<1.1", "query")
    del model.pts_bbox_head.pc_range
    model.pts_bbox_head.bbox_coder.pc_range = RANGE[:2]
    with pytest.raises(ConfigurationProblem, match=r"give pc_range=\[x_min, y_min, z_min, x_max"):
        ObjectDetection3DTracer(model, "net", "v2")
    with pytest.raises(ConfigurationProblem, match="each minimum below its maximum"):
        ObjectDetection3DTracer(model, "net", "v2", pc_range=[1, 0, 0, 0, 1, 1])
    ObjectDetection3DTracer(model, "net", "v2", pc_range=RANGE)


def test_limits_hold_within_the_call_and_iou_says_where_it_acts(caplog: pytest.LogCaptureFixture) -> None:
    model = mm.FakeOldDetector(mm.FakeCenterHead()).eval()
    tracer = ObjectDetection3DTracer(
        model, "net", "v", score_thresh=0.6, iou_thresh=0.3, max_detections_per_frame=3
    )
    tracer({"points": clouds(2), "img_metas": metas(2)}, None, ["a", "b"], "val", 0)
    tracer.wait_for_save(0)
    assert model.pts_bbox_head.bbox_coder.score_threshold == 0.1
    assert table().n_detections.max() <= 3
    assert table("detections").score.min() >= 0.6
    assert table().score_thresh.tolist() == pytest.approx([0.6, 0.6])
    assert table().iou_thresh.isna().all()
    assert "for PointPillars only" in caplog.text


def test_cars_wider_than_long_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = mm.FakeNewDetector(mm.FakeCenterHead()).eval()
    tracer = ObjectDetection3DTracer(model, "net", "v")
    wrong = truth(25)
    wrong["boxes_3d"][:, [3, 4]] = wrong["boxes_3d"][:, [4, 3]]
    samples = [SimpleNamespace(metainfo={})]
    tracer({"inputs": {"points": clouds(1)}, "data_samples": samples}, [wrong], ["a"], "val", 0)
    tracer.wait_for_save(0)
    assert "The true vehicles come out wider than long (median 4.2 m wide, 1.7 m long)" in caplog.text
    caplog.clear()
    tracer({"inputs": {"points": clouds(1)}, "data_samples": samples}, [truth(25)], ["a"], "val", 1)
    tracer.wait_for_save(1)
    assert "wider than long" not in caplog.text


# A new detector by subclass: all that is needed stands between the lines.
# --------------------------------------------------------------------------------------------------------------
class OwnDetector(nn.Module):
    def forward(self, points: list[Tensor]) -> dict[str, Any]:
        return {"centers": [cloud[:4, :3] for cloud in points], "p": [cloud[:4, 3] for cloud in points]}


class OwnTracer(ObjectDetection3DTrainingTorchTracer):
    @staticmethod
    def detect(model: Any) -> bool:
        return isinstance(model, OwnDetector)

    def _get_n_class(self, model: Any) -> int:
        return 2

    def _register_model_hooks(self, model: Any) -> None:
        """Nothing to hook: the output says all."""

    def _parse_model_output(self, model_output: Any) -> Detection3DOutput:
        size = torch.tensor([1.7, 4.2, 1.5, 0.0]).expand(4, 4)
        return Detection3DOutput(
            boxes=[torch.cat([centers, size], 1) for centers in model_output["centers"]],
            scores=[p.sigmoid() for p in model_output["p"]],
            labels=[(p > 0).long() for p in model_output["p"]],
            logits=[torch.stack([-p, p], 1) for p in model_output["p"]],
        )


# --------------------------------------------------------------------------------------------------------------


def test_a_detector_is_added_by_subclass() -> None:
    tracer = ObjectDetection3DTracer(OwnDetector(), "net", "v", score_thresh=0.0)
    assert type(tracer) is OwnTracer
    two = clouds(2)
    tracer(two, [truth(1), truth(2)], ["a", "b"], "val", 0)
    tracer.wait_for_save(0)
    assert not tracer.guard.problems, tracer.guard.tracebacks
    assert table().n_detections.tolist() == [4, 4]
    np.testing.assert_allclose(np.stack(table("detections").box)[4:, :3], two[1][:4, :3], atol=1e-6)
    assert len(table("vectors")) == 8


@pytest.mark.parametrize("roi", [False, True])
def test_limits_of_each_class_are_not_the_frames(tmp_path: Path, monkeypatch: Any, roi: bool) -> None:
    """OpenPCDet with MULTI_CLASSES_NMS: all that the model returns is recorded, a full class says so."""
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    model = pcd.FakeTemplate(pcd.FakeAnchorHead(anchors=8), roi=roi).eval()
    config = model.model_cfg.POST_PROCESSING
    config.SCORE_THRESH, config.NMS_CONFIG.MULTI_CLASSES_NMS = 0.0, True
    for version, most, capped in (
        ("v1", 300, False),
        ("v2", 3, not roi),
    ):  # the stand-in's second stage gives five
        config.NMS_CONFIG.NMS_POST_MAXSIZE = most
        tracer = ObjectDetection3DTracer(model, "net", version)
        with torch.no_grad():
            output, _ = tracer(pcd.batch_of(clouds(2)), None, ["a", "b"], "val", 0)
        tracer.wait_for_save(0)
        samples = load("net", version).to_pandas()
        assert samples.n_detections.tolist() == [len(part["pred_scores"]) for part in output]
        assert set(samples.max_detections) == {3 * most}
        if not roi:
            assert samples.cap_hit.tolist() == [capped] * 2
            assert (samples.n_detections.min() > 300) == (most == 300)
        assert Store(tmp_path).run_info(RunKey("net", version))["max_detections_of"] == "class"


def test_points_of_one_tensor_are_frames() -> None:
    """(B, N, 4): as many points in every frame."""
    least = min(len(cloud) for cloud in clouds(2))
    listed = [cloud[:least] for cloud in clouds(2)]
    for version, given in (("v", listed), ("tensor", torch.stack(listed))):
        tracer = ObjectDetection3DTracer(OwnDetector(), "net", version, score_thresh=0.0)
        tracer(given, [truth(1), truth(2)], ["a", "b"], "val", 0)
        tracer.wait_for_save(0)
        assert not tracer.guard.problems, tracer.guard.tracebacks
    one, other = (load("net", version).to_pandas() for version in ("v", "tensor"))
    assert one.input_hash.tolist() == other.input_hash.tolist()
    assert other.n_detections.tolist() == [4, 4]
    assert other.n_truths.tolist() == [1, 2]
    model = mm.FakeNewDetector(mm.FakeCenterHead()).eval()  # of a framework: called as with a list
    with pytest.raises(ValueError, match="bare points need"):
        ObjectDetection3DTracer(model, "net", "framework")(torch.stack(listed), None, ["a", "b"], "val", 0)
