"""Ultralytics' detectors with random weights: the same detections as the library's own, with their logits."""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optional
import pytest
import torch

from mld_core.adapters.base import ModelCall, Thresholds
from mld_core.adapters.registry import UnknownDetectorError, find_adapter

os.environ.setdefault("YOLO_OFFLINE", "True")
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(__file__).parents[2] / ".tmp" / "ultralytics"))
optional.torchvision()  # its suppression kernel is what both sides use where it is loaded
ultralytics = pytest.importorskip("ultralytics", reason="a test dependency: see the Makefile")

LIMITS = Thresholds(0.3, 0.45, 50)
ROUNDING = 1e-6  # a kernel rounds the last bit as the position in memory has it


@pytest.fixture
def yolo() -> Any:
    """A wrapper whose scores spread over (0, 1)."""

    def make(name: str, classes: int = 4) -> Any:
        torch.manual_seed(0)
        wrapper = ultralytics.YOLO(name)
        head = wrapper.model.model[-1]
        if classes != head.nc:
            config = {**wrapper.model.yaml, "nc": classes}
            wrapper.model = type(wrapper.model)(config, verbose=False)
            wrapper.model.args = {"conf": None, "iou": 0.7, "max_det": 300}
            head = wrapper.model.model[-1]
        with torch.no_grad():
            for name in ("cv2", "cv3", "one2one_cv2", "one2one_cv3"):
                for branch in getattr(head, name, None) or ():
                    branch[-1].weight.normal_(std=0.15)
                    branch[-1].bias.fill_(-1.0)
            for module in wrapper.model.train().modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 1.0  # statistics of what passes, so that outputs vary
            wrapper.model(_images())
        wrapper.model.eval()
        return wrapper

    return make


def _images(count: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name", ["yolov8n.yaml", "yolov5n.yaml", "yolov9t.yaml", "yolov10n.yaml", "yolo11n.yaml"]
)
def test_bare_models_give_the_librarys_detections(watched: Any, yolo: Any, name: str) -> None:
    from ultralytics.utils.nms import non_max_suppression

    net = yolo(name).model
    model = watched(net)
    images = _images()
    with torch.no_grad():
        call = model(images)
        own, kept = non_max_suppression(net(images)[0], 0.3, 0.45, max_det=50, return_idxs=True)
    parsed = model.adapter.parse(call, LIMITS)
    for i in range(2):
        assert len(own[i]) > 3
        np.testing.assert_array_equal(parsed.output.boxes[i], own[i][:, :4].numpy())
        np.testing.assert_array_equal(parsed.output.scores[i], own[i][:, 4].numpy())
        np.testing.assert_array_equal(parsed.output.labels[i], own[i][:, 5].numpy())
        np.testing.assert_array_equal(parsed.output.source_index[i], kept[i].numpy())
        sigmoid = torch.from_numpy(parsed.output.logits[i]).sigmoid()
        np.testing.assert_allclose(sigmoid.max(1).values.numpy(), parsed.output.scores[i], rtol=ROUNDING)
        assert np.isfinite(parsed.output.features[i]).all()
        assert 0 < parsed.output.features[i].shape[1] <= 512
    assert (parsed.activation, parsed.background) == ("sigmoid", None)
    assert parsed.thresholds == LIMITS
    assert [(g.height, g.width) for g in parsed.geometry] == [(64, 96)] * 2
    assert model.adapter.n_class() == 4
    assert model.adapter.class_names() is None


def test_end_to_end_heads(watched: Any, yolo: Any) -> None:
    net = yolo("yolov10n.yaml").model
    net.model[-1].end2end = True
    model = watched(net)
    with torch.no_grad():
        call = model(_images())
    final = call.output[0]
    assert final.shape[-1] == 6
    parsed = model.adapter.parse(call, Thresholds(score=0.0, max_detections=1000))
    for i in range(2):
        np.testing.assert_array_equal(parsed.output.boxes[i], final[i][:, :4].numpy())
        np.testing.assert_array_equal(parsed.output.scores[i], final[i][:, 4].numpy())
        rows = torch.from_numpy(parsed.output.logits[i]).sigmoid()
        np.testing.assert_allclose(
            rows[torch.arange(len(rows)), torch.from_numpy(parsed.output.labels[i])].numpy(),
            parsed.output.scores[i],
            rtol=ROUNDING,
        )
    cut = model.adapter.parse(call, Thresholds(score=0.0, max_detections=5))
    assert [len(s) for s in cut.output.scores] == [5, 5]
    assert cut.cap_hit == [True, True]
    assert cut.thresholds.iou is None
    # in train the same head gives the same rows, its boxes decoded here
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        train = model.adapter.parse(model(_images()), Thresholds(score=0.0, max_detections=1000))
    for i in range(2):
        np.testing.assert_array_equal(train.output.source_index[i], parsed.output.source_index[i])
        np.testing.assert_allclose(train.output.boxes[i], parsed.output.boxes[i], rtol=1e-5, atol=1e-3)


def test_train_forwards_give_the_detections_of_eval(watched: Any, yolo: Any) -> None:
    net = yolo("yolov8n.yaml").model
    model = watched(net)
    with torch.no_grad():
        expected = model.adapter.parse(model(_images()), LIMITS)
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    call = model(_images())  # with gradients
    assert call.training
    assert not call.watched["head"][-1].output["scores"].requires_grad
    got = model.adapter.parse(call, LIMITS)
    for field in ("scores", "labels", "logits", "source_index", "features"):
        for a, b in zip(getattr(got.output, field), getattr(expected.output, field), strict=True):
            np.testing.assert_allclose(a, b, rtol=ROUNDING)
    for a, b in zip(got.output.boxes, expected.output.boxes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_a_training_step_with_the_librarys_batch(watched: Any, yolo: Any) -> None:
    from ultralytics.cfg import get_cfg

    net = yolo("yolov8n.yaml").model.train()
    net.args = get_cfg()
    model = watched(net)
    batch = {
        "img": _images(),
        "cls": torch.tensor([[1.0], [3.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.25, 0.25, 0.1, 0.1]]),
        "batch_idx": torch.tensor([1.0, 1.0]),
        "im_file": ("a.jpg", "b.jpg"),
    }
    call = model(batch)
    assert call.output is None  # the losses and their graph are not held
    parsed = model.adapter.parse(call, LIMITS)
    assert len(parsed.output.boxes) == 2
    truths = model.adapter.truths(call, None)
    assert [t.labels.tolist() for t in truths] == [[], [1, 3]]
    np.testing.assert_allclose(truths[1].boxes[0], [36, 16, 60, 48])
    assert [t.input_id for t in truths] == [None, None]  # mixed images have no id of their own
    batch["ratio_pad"] = (((0.5, 0.5), (0, 16)), ((0.5, 0.5), (0, 16)))
    assert [t.input_id for t in model.adapter.truths(call, batch)] == ["a.jpg", "b.jpg"]
    geometry = model.adapter.parse(model(batch), LIMITS).geometry
    assert geometry[0].affine == (2.0, 0.0, 0.0, 0.0, 2.0, -32.0)
    lists = [{"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([0])}] * 2
    assert [t.labels.tolist() for t in model.adapter.truths(call, lists)] == [[0], [0]]


def test_the_wrapper_gives_results_with_logits(watched: Any, yolo: Any) -> None:
    wrapper = yolo("yolov8n.yaml")
    model = watched(wrapper)
    assert model.adapter.thresholds() == Thresholds(0.25, 0.7, 300)
    with model.adapter.applied(LIMITS):
        call = model(_images(), verbose=False)
    assert "predict" not in vars(wrapper)
    parsed = model.adapter.parse(call, LIMITS)
    results = wrapper(_images(), verbose=False, conf=0.3, iou=0.45, max_det=50)
    for i, result in enumerate(results):
        data = result.boxes.data
        assert len(data) > 3
        np.testing.assert_array_equal(parsed.output.boxes[i], data[:, :4].numpy())
        np.testing.assert_array_equal(parsed.output.scores[i], data[:, 4].numpy())
        assert (parsed.output.source_index[i] >= 0).all()
        rows = torch.from_numpy(parsed.output.logits[i]).sigmoid()
        np.testing.assert_allclose(rows.max(1).values.numpy(), data[:, 4].numpy(), atol=1e-6)
        np.testing.assert_array_equal(rows.argmax(1).numpy(), parsed.output.labels[i])
        assert parsed.output.features[i].shape[0] == len(data)
    with pytest.raises(KeyError), model.adapter.applied(LIMITS):
        raise KeyError
    assert "predict" not in vars(wrapper)


def test_results_of_pictures_of_any_size(watched: Any, yolo: Any) -> None:
    """Pictures are fitted into the network's input with borders; boxes come back in their own pixels."""
    wrapper = yolo("yolov8n.yaml")
    model = watched(wrapper)
    pictures = [np.random.default_rng(i).integers(0, 255, (50 + 30 * i, 120, 3), np.uint8) for i in range(2)]
    with model.adapter.applied(LIMITS):
        call = model(pictures, verbose=False, imgsz=128)
    assert all(isinstance(row, tuple) for row in call.output)  # the pictures are not held
    parsed = model.adapter.parse(call, LIMITS)
    assert [(g.height, g.width) for g in parsed.geometry] == [(50, 120), (80, 120)]
    for i in range(2):
        assert len(parsed.output.boxes[i]) > 3
        assert (parsed.output.source_index[i] >= 0).all()
        assert len(set(parsed.output.source_index[i])) == len(parsed.output.boxes[i])
    # a call without hooks: no logits, the same boxes
    bare = model.adapter.parse(replace(call, watched={}), LIMITS)
    assert bare.activation == "none"
    assert bare.output.logits is None
    np.testing.assert_array_equal(bare.output.boxes[0], parsed.output.boxes[0])


def test_a_folder_of_pictures_is_several_batches(watched: Any, yolo: Any, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    wrapper = yolo("yolov8n.yaml")
    model = watched(wrapper)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 96 + 32 * i, 3), np.uint8)
        image.fromarray(pixels).save(tmp_path / f"{i}.png")
    with model.adapter.applied(LIMITS):
        call = model(str(tmp_path), verbose=False, imgsz=96)
    assert len(call.watched["head"]) >= 3
    parsed = model.adapter.parse(call, LIMITS)
    assert [g.width for g in parsed.geometry] == [96, 128, 160]
    for i in range(3):
        assert len(parsed.output.boxes[i]) > 3
        assert (parsed.output.source_index[i] >= 0).all()
        rows = torch.from_numpy(parsed.output.logits[i]).sigmoid().max(1).values
        np.testing.assert_allclose(rows.numpy(), parsed.output.scores[i], rtol=ROUNDING)


def test_fall_back_thresholds_and_those_of_the_model(yolo: Any, watched: Any) -> None:
    net = yolo("yolov8n.yaml").model
    model = watched(net)
    assert model.adapter.thresholds() == Thresholds(None, 0.7, 300)
    with torch.no_grad():
        call = model(_images())
    assert model.adapter.parse(call, Thresholds()).thresholds == Thresholds(0.05, 0.7, 300)
    del net.args
    assert model.adapter.thresholds() == Thresholds()
    call = replace(call, thresholds=None)
    assert model.adapter.parse(call, Thresholds()).thresholds == Thresholds(0.05, 0.5, 300)
    few = model.adapter.parse(call, Thresholds(max_detections=2))
    assert few.cap_hit == [True, True]
    none = model.adapter.parse(call, Thresholds(score=1.0))
    assert [len(b) for b in none.output.boxes] == [0, 0]
    assert none.output.logits[0].shape == (0, 4)


def test_without_torchvision_our_own_suppression_runs(
    yolo: Any, watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = watched(yolo("yolov8n.yaml").model)
    with torch.no_grad():
        call = model(_images())
    expected = model.adapter.parse(call, LIMITS)
    monkeypatch.delitem(sys.modules, "torchvision")
    got = model.adapter.parse(call, LIMITS)
    for a, b in zip(got.output.source_index, expected.output.source_index, strict=True):
        np.testing.assert_array_equal(a, b)


def test_layouts_of_earlier_releases(yolo: Any, watched: Any) -> None:
    """Up to 8.3 a head handed out a list of maps, and the boxes were overwritten in place."""
    net = yolo("yolov8n.yaml").model
    model = watched(net)
    with torch.no_grad():
        call = model(_images())
    expected = model.adapter.parse(call, LIMITS)
    decoded, raw = call.watched["head"][-1].output
    counts = [h * w for h, w in raw["feats"]]
    joined = torch.cat([raw["boxes"], raw["scores"]], 1)
    maps = [m.unflatten(2, tuple(s)) for m, s in zip(joined.split(counts, 2), raw["feats"], strict=True)]
    overwritten = decoded.clone()
    old = model.adapter.keep("head", replace(call.watched["head"][-1], output=(overwritten, maps)))
    overwritten.zero_()
    got = model.adapter.parse(replace(call, watched={**call.watched, "head": [old]}), LIMITS)
    train = model.adapter.keep("head", replace(old, output=maps))
    trained = model.adapter.parse(replace(call, watched={**call.watched, "head": [train]}), LIMITS)
    for i in range(2):
        np.testing.assert_array_equal(got.output.boxes[i], expected.output.boxes[i])
        np.testing.assert_array_equal(got.output.logits[i], expected.output.logits[i])
        np.testing.assert_array_equal(trained.output.source_index[i], expected.output.source_index[i])


def test_not_a_number_and_half_precision(yolo: Any, watched: Any) -> None:
    net = yolo("yolov8n.yaml").model
    model = watched(net)
    with torch.no_grad():
        call = model(_images())
    decoded, raw = call.watched["head"][-1].output

    def changed(decoded: torch.Tensor, scores: torch.Tensor) -> ModelCall:
        head = replace(call.watched["head"][-1], output=(decoded, {**raw, "scores": scores}))
        return replace(call, watched={**call.watched, "head": [head]})

    broken = decoded.clone()
    broken[0, 4:] = torch.nan
    parsed = model.adapter.parse(changed(broken, raw["scores"]), LIMITS)
    assert len(parsed.output.boxes[0]) == 0
    assert len(parsed.output.boxes[1]) > 3
    for dtype in (torch.float16, torch.bfloat16):
        half = model.adapter.parse(changed(decoded.to(dtype), raw["scores"].to(dtype)), LIMITS)
        assert len(half.output.boxes[0]) > 3


def test_parse_changes_nothing(yolo: Any, watched: Any) -> None:
    net = yolo("yolov8n.yaml").model
    model = watched(net)
    call = model(_images())
    state = {k: v.clone() for k, v in net.state_dict().items()}
    head = {k: v for k, v in vars(net.model[-1]).items() if not k.startswith("_")}
    output, random = copy.deepcopy(call.output[0].detach()), torch.get_rng_state()
    model.adapter.parse(call, LIMITS)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
    assert head.keys() == {k for k in vars(net.model[-1]) if not k.startswith("_")}
    assert torch.equal(output, call.output[0])


def test_other_tasks_are_not_taken() -> None:
    with pytest.raises(UnknownDetectorError):
        find_adapter(ultralytics.YOLO("yolov8n-cls.yaml").model)


def _small_rtdetr() -> Any:
    """A decoder of the library on maps of an untrained backbone of a few layers."""
    torch.manual_seed(0)
    layers = {
        "nc": 4,
        "backbone": [
            [-1, 1, "Conv", [8, 3, 4]],
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 1, "Conv", [16, 3, 2]],
        ],
        "head": [[[1, 2, 3], 1, "RTDETRDecoder", ["nc", 32, 20, 4, 4, 2, 64]]],
    }
    net = ultralytics.nn.tasks.RTDETRDetectionModel(layers, ch=3, nc=4, verbose=False).eval()
    with torch.no_grad():
        for layer in net.model[-1].dec_score_head:
            layer.weight.normal_(std=0.3)
            layer.bias.zero_()
    return net


def test_rtdetr_queries(watched: Any) -> None:
    net = _small_rtdetr()
    model = watched(net)
    assert model.adapter.family == "Ultralytics RT-DETR"
    assert model.adapter.n_class() == 4
    with torch.no_grad():
        call = model(_images())
    final = net(_images())[0].detach()
    limits = Thresholds(score=0.0, max_detections=final.shape[1])
    parsed = model.adapter.parse(call, limits)
    for i in range(2):
        x, y, w, h = (final[i, :, :4] * torch.tensor([96.0, 64, 96, 64])).T
        boxes = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 1)
        np.testing.assert_allclose(parsed.output.boxes[i], boxes.numpy(), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(parsed.output.scores[i], final[i, :, 4].numpy(), rtol=ROUNDING)
        np.testing.assert_array_equal(parsed.output.labels[i], final[i, :, 5].numpy())
        rows = torch.from_numpy(parsed.output.logits[i]).sigmoid()
        picked = rows[torch.arange(len(rows)), torch.from_numpy(parsed.output.labels[i])]
        np.testing.assert_allclose(picked.numpy(), parsed.output.scores[i], rtol=ROUNDING)
        assert parsed.output.features[i].shape == (len(rows), 32)
    # in train the queries of the denoising task come first and are left out
    head = call.watched["head"][-1]
    boxes, scores, *rest = head.output[1]
    extra = [torch.cat((torch.zeros_like(t[:, :, :6]), t), 2) for t in (boxes, scores)]
    train = replace(head, output=(*extra, *rest[:2], {"dn_num_split": [6, scores.shape[2]]}))
    got = model.adapter.parse(replace(call, watched={**call.watched, "head": [train]}), limits)
    np.testing.assert_array_equal(got.output.source_index[0], parsed.output.source_index[0])
    assert got.thresholds.iou is None
