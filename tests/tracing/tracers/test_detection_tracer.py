"""Hand-called tracers of detectors: real torchvision and Hugging Face models, thresholds, own families."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import optional
import pytest
import torch
from detection_parts import CornerAdapter, CornerNet, boxes_of, image, registered, truth
from torch import Tensor, nn

from ml_debugger.records import load
from ml_debugger.tracer import Detection3DOutput, DetectionOutput
from ml_debugger.training import ObjectDetection3DTracer, ObjectDetectionTracer
from ml_debugger.training.object_detection.object_detection_torchtracer import (
    ObjectDetectionTrainingTorchTracer,
)
from ml_debugger.training.object_detection_3d.object_detection_3d_torchtracer import (
    ObjectDetection3DTrainingTorchTracer,
)
from mld_core.adapters.registry import UnknownDetectorError
from mld_core.tracing.guard import ConfigurationProblem


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))


@pytest.fixture
def corner() -> Any:
    with registered(CornerAdapter):
        yield CornerNet().eval()


def table(family: str = "samples", **which: Any) -> Any:
    return load("net", "v", family, **which).to_pandas()


def faster_rcnn() -> Any:
    detection = optional.torchvision("torchvision.models.detection")
    torch.manual_seed(0)
    return detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=96
    )


def yolos() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.YolosForObjectDetection(
        transformers.YolosConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            image_size=[64, 96],
            num_detection_tokens=6,
            num_labels=4,
        )
    )


def test_torchvision_with_limits_within_the_call_only() -> None:
    model = faster_rcnn().eval()
    tracer = ObjectDetectionTracer(model, "net", "v", score_thresh=0.01, max_detections_per_image=5)
    assert type(tracer) is ObjectDetectionTrainingTorchTracer
    images = [torch.rand(3, 64, 80), torch.rand(3, 48, 64)]
    targets = [truth((1, 1, 20, 20), label=3), truth()]
    output = tracer(images, targets, ["a", "b"], "val", 0)
    assert [len(frame["boxes"]) for frame in output] == [5, 5]
    assert (model.roi_heads.score_thresh, model.roi_heads.detections_per_img) == (0.05, 100)
    with pytest.raises(AttributeError):
        tracer("no image", None, ["c"], "val", 0)
    assert model.roi_heads.score_thresh == 0.05
    tracer.wait_for_save(0)
    samples, detections = table(), table("detections")
    np.testing.assert_allclose(samples.score_thresh, 0.01)
    assert samples.n_detections.tolist() == [5, 5]
    assert samples.cap_hit.all()
    np.testing.assert_array_equal(boxes_of(detections[detections.unit == 0]), output[0]["boxes"].detach())
    assert detections.label.tolist() == [int(y) - 1 for frame in output for y in frame["labels"]]
    assert table("truths").label.tolist() == [2]
    assert load("net", "v", "vectors")["logits"].type.list_size == 4


def test_torchvision_is_trained_with_the_truth_through_the_tracer() -> None:
    model = faster_rcnn().train()
    tracer = ObjectDetectionTracer(model, "net", "v")
    losses = tracer([torch.rand(3, 64, 80)], [truth((1, 1, 20, 20), label=1)], ["a"], "train", 0)
    sum(losses.values()).backward()
    assert model.roi_heads.box_predictor.cls_score.weight.grad is not None
    tracer.wait_for_save(0)
    with pytest.raises(ValueError, match="nothing"):
        tracer.export()


def test_truth_numbered_from_0_where_the_model_counts_from_1_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracer = ObjectDetectionTracer(faster_rcnn().eval(), "net", "v")
    targets = [truth((1, 1, 20, 20), (2, 2, 30, 30), label=0)]
    for name in "ab":
        tracer([torch.rand(3, 64, 80)], targets, [name], "val", 0)
    tracer.wait_for_save(0)
    assert table("truths").ignore.tolist() == [True] * 4
    assert table().n_truths.tolist() == [2, 2]
    assert sum("count classes from 1" in record.message for record in caplog.records) == 1


def test_detr_like_models_ignore_iou_and_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = yolos().eval()
    tracer = ObjectDetectionTracer(model, "net", "v", score_thresh=0.0, iou_thresh=0.3)
    for batch in range(2):
        tracer(torch.rand(2, 3, 64, 96), [truth((1, 1, 20, 20))] * 2, [f"{batch}a", f"{batch}b"], "val", 0)
    tracer.wait_for_save(0)
    assert sum("iou_thresh has no effect" in record.message for record in caplog.records) == 1
    samples = table()
    assert samples.n_detections.tolist() == [6] * 4
    assert samples.n_truths.tolist() == [1] * 4
    train = yolos().train()
    again = ObjectDetectionTracer(train, "net", "train", score_thresh=0.0)
    again({"pixel_values": torch.rand(1, 3, 64, 96)}, None, ["a"], "train", 0).logits.sum().backward()
    again.wait_for_save(0)
    recorded = load("net", "train").to_pandas()
    assert recorded["mode"].tolist() == ["train"]
    assert recorded.n_detections.tolist() == [6]


class Heat(nn.Module):
    """No family knows it: a map of which every cell above a threshold is a box."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 2, 1)
        self.threshold = 0.5

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return torch.where(x > self.threshold, x, torch.zeros(()))


class HeatTracer(ObjectDetectionTrainingTorchTracer):
    """A family of one's own, as docs say."""

    @staticmethod
    def detect(model: Any) -> bool:
        return isinstance(model, Heat)

    def _get_n_class(self, model: Heat) -> int:
        return model.body.out_channels

    def _register_model_hooks(self, model: Heat) -> None:
        self.hooked: list[Tensor] = []
        model.body.register_forward_hook(lambda module, args, output: self.hooked.append(output.detach()))

    def _apply_nms_config(self, model: Heat, nms_config: Any) -> Any:
        before = {"score_thresh": model.threshold}
        model.threshold = nms_config.get("score_thresh", model.threshold)
        return before

    def _parse_model_output(self, model_output: Tensor, img_sizes: Any) -> DetectionOutput:
        assert img_sizes == [(4, 6)] * len(model_output)
        boxes, scores, labels, logits = [], [], [], []
        for frame, raw in zip(model_output, self.hooked[-1], strict=True):
            y, x = torch.where(frame[0] > 0)
            boxes.append(torch.stack([x, y, x + 1, y + 1], 1).float())
            scores.append(frame[0, y, x])
            logits.append(raw[:, y, x].T)
            labels.append(logits[-1].argmax(1))
        return DetectionOutput(boxes, scores, labels, logits)


def test_a_family_of_ones_own_alone_and_through_the_factory() -> None:
    model = Heat().eval()
    x = torch.zeros(2, 1, 4, 6)
    x[0, 0, 1, 2], x[0, 0, 3, 5], x[1, 0, 0, 0] = 0.9, 0.4, 0.6
    for version, tracer in (
        ("alone", HeatTracer(model, "net", "alone", score_thresh=0.3)),
        ("factory", ObjectDetectionTracer(model, "net", "factory", score_thresh=0.3)),
    ):
        assert type(tracer) is HeatTracer
        output = tracer(x, {"boxes": [[[2, 1, 3, 2]], []], "labels": [[0], []]}, ["a", "b"], "val", 0)
        assert output[0, 0, 3, 5] > 0
        assert model.threshold == 0.5
        tracer.wait_for_save(0)
        assert not tracer.guard.problems, tracer.guard.tracebacks
        samples = load("net", version).to_pandas()
        assert samples.n_detections.tolist() == [2, 1]
        assert samples.n_truths.tolist() == [1, 0]
        assert samples.image_width.tolist() == [6, 6]
        detections = load("net", version, "detections").to_pandas()
        assert boxes_of(detections).tolist() == [[2, 1, 3, 2], [5, 3, 6, 4], [0, 0, 1, 1]]
        assert load("net", version, "vectors")["logits"].type.list_size == 2


def test_a_fully_custom_tracer(corner: CornerNet) -> None:
    class Custom(ObjectDetectionTrainingTorchTracer):
        def _parse_and_save_io_data(
            self, model_input: Any, model_output: Any, ground_truth: Any, **kwargs: Any
        ) -> None:
            found = DetectionOutput([[[0, 0, 1, 1]]], [[0.7]], [[1]])
            ids, split, epoch = kwargs["input_ids"], kwargs["dataset_type"], kwargs["n_epoch"]
            self.save_batch(model_input, found, ground_truth, ids, split, epoch, {})

    tracer = Custom(corner, "net", "v")
    tracer([image(3)], [truth()], ["a"], "val", 0)
    tracer.wait_for_save(0)
    assert table("detections").score.tolist() == pytest.approx([0.7])


def test_an_unknown_model_is_one_error_that_says_what_to_do() -> None:
    with pytest.raises(UnknownDetectorError) as error:
        ObjectDetectionTracer(nn.Linear(2, 2), "net", "v")
    text = str(error.value)
    assert "torch.nn.modules.linear.Linear" in text
    assert "torchvision R-CNN" in text
    assert "_parse_model_output" in text
    assert "register" in text
    with pytest.raises(UnknownDetectorError, match="ObjectDetection3DTrainingTorchTracer"):
        ObjectDetection3DTracer(nn.Linear(2, 2), "net", "v")


def test_several_detectors_are_a_clear_error(corner: CornerNet) -> None:
    with pytest.raises(ConfigurationProblem, match="2 detectors"):
        ObjectDetectionTracer(nn.ModuleList([corner, CornerNet()]), "net", "v")


def test_hooked_features_and_fields(corner: CornerNet) -> None:
    tracer = ObjectDetectionTracer(
        corner,
        "net",
        "v",
        target_layers={"map": "head"},
        additional_fields=[{"name": "camera", "type": "str"}],
        additional_label_fields=[{"name": "visible", "type": "int64"}],
    )
    tracer([image(2)], [truth((0, 0, 4, 5))], torch.tensor([7]), "val", 0, camera=["left"], visible=[[3]])
    assert tracer.get_hooked_features("map").shape == (1, 3, 16, 24)
    with pytest.raises(KeyError, match="map"):
        tracer.get_hooked_features("other")
    tracer.wait_for_save(0)
    assert table().camera.tolist() == ["left"]
    assert table().input_id.tolist() == ["7"]
    assert table("truths").visible.tolist() == [3]
    names = load("net", "v", "vectors").schema.names
    assert {"map", "logits", "features"} <= set(names)


def test_errors_of_the_recording_never_reach_the_caller(corner: CornerNet, monkeypatch: Any) -> None:
    tracer = ObjectDetectionTracer(corner, "net", "v", score_thresh=0.2)
    monkeypatch.setattr(CornerAdapter, "fault", "parse")
    monkeypatch.setattr(CornerAdapter, "applied", lambda self, limits: 1 / 0)
    assert len(tracer([image(2)], "nonsense", ["a", "b"], "val", 0)) == 1
    tracer.wait_for_save(0)
    assert tracer.recorder.session.account().rows_lost == 1
    assert "applying the thresholds" in tracer.guard.problems


def test_scores_that_are_no_numbers_stay_and_are_counted() -> None:
    class Broken(ObjectDetectionTrainingTorchTracer):
        @staticmethod
        def detect(model: Any) -> bool:
            return False

        def _parse_model_output(self, model_output: Any, img_sizes: Any = None) -> DetectionOutput:
            return DetectionOutput([[[0, 0, 4, 4]] * 3], [[0.9, float("nan"), 0.1]], [[0, 0, 0]])

    tracer = Broken(nn.Identity(), "net", "v", n_class=2, score_thresh=0.5)
    tracer(torch.rand(1, 3, 8, 8), [truth()], ["a"], "val", 0)
    tracer.wait_for_save(0)
    assert table().n_detections.tolist() == [2]
    assert table().nonfinite.tolist() == [True]


def test_thresholds_that_can_not_be_restored_never_reach_the_caller(corner: CornerNet) -> None:
    class Stuck(ObjectDetectionTrainingTorchTracer):
        applied = 0

        def _apply_nms_config(self, model: Any, nms_config: Any) -> Any:
            self.applied += 1
            return {"score_thresh": 0.1} if self.applied % 2 else 1 / 0

    tracer = Stuck(corner, "net", "v", score_thresh=0.2)
    assert len(tracer([image(2)], [truth()], ["a"], "val", 0)) == 1
    assert "restoring the thresholds" in tracer.guard.problems
    with pytest.raises(TypeError):  # the model's own error stays the model's
        tracer("no image", None, ["b"], "val", 0)


def test_a_call_that_can_not_be_kept_never_reaches_the_caller(corner: CornerNet, monkeypatch: Any) -> None:
    tracer = ObjectDetectionTracer(corner, "net", "v")
    tracer([image(2)], [truth()], ["a"], "val", 0)
    monkeypatch.setattr(type(tracer.recorder.session.capture), "take", lambda self: 1 / 0)
    assert tracer.recorder.heard_input is None
    assert "reading the model's call" in tracer.guard.problems


def test_a_tracer_survives_a_pickle(corner: CornerNet) -> None:
    tracer = pickle.loads(pickle.dumps(ObjectDetectionTracer(corner, "net", "v")))
    tracer([image(2)], [truth()], ["a"], "val", 0)
    tracer.wait_for_save(0)
    assert table().n_detections.tolist() == [2]


def test_one_class_is_enough(corner: CornerNet) -> None:
    tracer = ObjectDetectionTracer(corner, "net", "v", n_class=1)
    tracer([image(1)], [truth((0, 0, 4, 5), label=1)], ["a"], "val", 0)
    tracer.wait_for_save(0)
    assert table("truths").ignore.tolist() == [True]  # class 1 of 1


class Cloud(nn.Module):
    def forward(self, points: Tensor) -> Tensor:
        return points[:2]


class CloudTracer(ObjectDetection3DTrainingTorchTracer):
    """The 3D form: one argument."""

    @staticmethod
    def detect(model: Any) -> bool:
        return isinstance(model, Cloud)

    def _parse_model_output(self, model_output: Tensor) -> Detection3DOutput:  # type: ignore[override]
        return Detection3DOutput([model_output[:, :7]], [[0.9, 0.8]], [[0, 1]], velocities=[torch.ones(2, 2)])


def test_3d_with_a_provider_of_truth() -> None:
    class Provider:
        def get(self, input_ids: list[str], dataset_type: str) -> Any:
            assert (input_ids, dataset_type) == (["f1"], "val")
            return [{"boxes_3d": np.ones((1, 7)), "labels_3d": [1], "velocities": [[1.0, 2.0]]}]

    tracer = ObjectDetection3DTracer(Cloud(), "net", "v", ground_truth_provider=Provider(), n_class=2)
    tracer(torch.arange(24.0).reshape(3, 8), None, ["f1"], "val", 0)
    tracer.wait_for_save(0)
    assert not tracer.guard.problems, tracer.guard.tracebacks
    assert table().n_truths.tolist() == [1]
    assert boxes_of(table("detections")).shape == (2, 7)
    assert np.stack(list(table("detections").velocity)).tolist() == [[1, 1], [1, 1]]
    assert np.stack(list(table("truths").velocity)).tolist() == [[1, 2]]
    np.testing.assert_allclose(table().score_thresh, 0.1)


@pytest.mark.parametrize(
    "path",
    [
        "ml_debugger.training.object_detection.object_detection_torchtracer.ObjectDetectionTrainingTorchTracer",
        "ml_debugger.tracer.object_detection.object_detection_torchtracer.ObjectDetectionTorchTracer",
        "ml_debugger.training.object_detection_3d.object_detection_3d_torchtracer.ObjectDetection3DTrainingTorchTracer",
        "ml_debugger.tracer.object_detection_3d.object_detection_3d_torchtracer.ObjectDetection3DTorchTracer",
    ],
)
def test_qualified_class_paths(path: str) -> None:
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    task = "detection3d" if "3d" in module else "detection"
    assert kind.task == task


def test_a_subclass_with_detect_alone_is_no_tracer(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))

    class Claims(ObjectDetectionTrainingTorchTracer):
        @staticmethod
        def detect(model: Any) -> bool:
            return isinstance(model, nn.Bilinear)

    model = nn.Bilinear(1, 1, 1)
    with pytest.raises(TypeError, match=r"Claims claims the model.*_parse_model_output"):
        Claims(model, "net", "v")
    with pytest.raises(TypeError, match="_parse_model_output"):
        ObjectDetectionTracer(model, "net", "v")


def test_waiting_without_the_epoch_says_so(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    with registered(CornerAdapter):
        tracer = ObjectDetectionTracer(CornerNet().eval(), "net", "v")
        tracer([image(1)], [truth()], ["a"], "val", 0)
        tracer.wait_for_save()
    assert "give the same n_epoch as the calls did" in caplog.text
    assert load("net", "v", n_epoch=0).num_rows == 1
