"""torchvision's detectors with random weights: every final detection's logits, exactly."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import optional
import pytest
import torch

detection = optional.torchvision("torchvision.models.detection")
from torchvision_detectors import BUILD, CLASSES, DENSE, FIRST, torchvision_detector  # noqa: E402

from mld_core.adapters.base import ModelCall, Parsed, Thresholds  # noqa: E402
from mld_core.adapters.registry import find_adapter  # noqa: E402

ROUNDING = 1e-6  # a kernel rounds the last bit as the position in memory has it
SIZES = [(120, 160), (150, 100), (64, 64)]


_made: dict[str, Any] = {}


@pytest.fixture
def build() -> Any:
    """A model of its own, with class layers whose logits vary."""

    def make(name: str) -> Any:
        if name not in _made:
            _made[name] = torchvision_detector(name)
        return copy.deepcopy(_made[name])

    return make


def _images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(3, h, w, generator=generator) for h, w in SIZES]


def _targets(first: int) -> list[dict[str, torch.Tensor]]:
    boxes = torch.tensor([[4.0, 5, 40, 50], [10, 8, 60, 60]])
    return [
        {"boxes": boxes, "labels": torch.tensor([first, first + 4]), "image_id": torch.tensor([i + 7])}
        for i in range(len(SIZES))
    ]


def _scores_of(parsed: Parsed, image: int) -> np.ndarray:
    logits = torch.from_numpy(parsed.output.logits[image])
    labels = torch.from_numpy(parsed.output.labels[image])
    if parsed.activation == "softmax":
        assert parsed.background == 0
        return logits.softmax(1)[torch.arange(len(labels)), labels + 1].numpy()
    scores = logits.sigmoid()[torch.arange(len(labels)), labels]
    if parsed.quality is not None:
        scores = torch.sqrt(scores * torch.from_numpy(parsed.quality[image]))
    return scores.numpy()


def _same(parsed: Parsed, output: list[dict[str, torch.Tensor]], first: int, rtol: float = 0.0) -> None:
    for i, own in enumerate(output):
        np.testing.assert_allclose(parsed.output.boxes[i], own["boxes"].float().numpy(), rtol=rtol, atol=0)
        np.testing.assert_allclose(parsed.output.scores[i], own["scores"].float().numpy(), rtol=rtol, atol=0)
        np.testing.assert_array_equal(parsed.output.labels[i], own["labels"].numpy() - first)


@pytest.mark.parametrize("name", BUILD)
def test_the_replayed_chain_is_the_models_own(watched: Any, build: Any, name: str) -> None:
    model = watched(build(name))
    with torch.no_grad():
        call = model(_images())
    # without the model's answer, everything comes from the replay
    replayed = model.adapter.parse(replace(call, output=None), Thresholds())
    given = model.adapter.parse(call, Thresholds())
    for parsed, rtol in ((replayed, ROUNDING), (given, 0.0)):
        _same(parsed, call.output, FIRST[name], rtol)
        for i in range(len(SIZES)):
            assert len(parsed.output.labels[i]) > 5
            np.testing.assert_allclose(_scores_of(parsed, i), parsed.output.scores[i], rtol=ROUNDING)
            assert np.isfinite(parsed.output.features[i]).all()
    for a, b in zip(replayed.output.source_index, given.output.source_index, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [(g.height, g.width) for g in given.geometry] == SIZES
    assert given.thresholds == model.adapter.thresholds()
    assert model.adapter.n_class() == CLASSES
    assert given.output.logits[0].shape[1] == CLASSES + (FIRST[name] == 1)


@pytest.mark.parametrize("name", DENSE)
def test_train_forwards_give_the_detections_of_eval(watched: Any, build: Any, name: str) -> None:
    inner = build(name)
    model = watched(inner)
    with torch.no_grad():
        expected = model.adapter.parse(model(_images()), Thresholds())
        inner.training = True  # the root and its transform only: batch norm and dropout stay as in eval
        inner.transform.training = True
        call = model(_images(), _targets(FIRST[name]))
    assert call.training
    assert set(call.output) >= {"classification", "bbox_regression"}
    got = model.adapter.parse(call, Thresholds())
    for field in ("boxes", "scores", "labels", "logits", "features", "source_index"):
        for a, b in zip(getattr(got.output, field), getattr(expected.output, field), strict=True):
            np.testing.assert_allclose(a, b, rtol=ROUNDING)


def test_two_stages_in_train_give_no_detections(watched: Any, build: Any) -> None:
    inner = build("faster").train()
    model = watched(inner)
    call = model(_images()[2:], _targets(1)[2:])
    assert "loss_classifier" in call.output
    assert all(c.args == () and c.output is None for seen in call.watched.values() for c in seen)
    assert model.adapter.parse(call, Thresholds()) is None


@pytest.mark.parametrize("name", ["faster", "retinanet", "ssdlite"])
def test_limits_are_set_and_restored(watched: Any, build: Any, name: str) -> None:
    inner = build(name)
    model = watched(inner)
    before = model.adapter.thresholds()
    limits = Thresholds(score=0.2, iou=0.3, max_detections=7)
    with torch.no_grad(), model.adapter.applied(limits):
        assert model.adapter.thresholds() == limits
        call = model(_images())
    assert model.adapter.thresholds() == before
    parsed = model.adapter.parse(call, limits)  # after the limits are gone, as on the writer thread
    _same(parsed, call.output, FIRST[name])
    np.testing.assert_allclose(_scores_of(parsed, 0), parsed.output.scores[0], rtol=ROUNDING)
    assert parsed.cap_hit[0]
    # a tracer that did not note the limits of the time
    blind = model.adapter.parse(replace(call, thresholds=None), limits)
    np.testing.assert_array_equal(blind.output.source_index[0], parsed.output.source_index[0])
    with pytest.raises(KeyError), model.adapter.applied(limits):
        raise KeyError
    assert model.adapter.thresholds() == before


def test_limits_filter_and_never_widen(watched: Any, build: Any) -> None:
    model = watched(build("fcos"))
    with torch.no_grad():
        call = model(_images())
    wide = model.adapter.parse(call, Thresholds(score=0.0, iou=1.0, max_detections=10_000))
    _same(wide, call.output, 0)
    assert wide.thresholds == model.adapter.thresholds()
    assert wide.cap_hit[0]  # the model's own limit cut
    score = float(np.median(wide.output.scores[0]))
    narrow = model.adapter.parse(call, Thresholds(score=score, iou=0.2, max_detections=4))
    assert len(narrow.output.scores[0]) <= 4
    assert (narrow.output.scores[0] >= score).all()
    assert set(narrow.output.source_index[0]) <= set(wide.output.source_index[0])
    assert narrow.thresholds == Thresholds(score, 0.2, 4)


def test_a_models_own_postprocessing_falls_back_to_values(watched: Any, build: Any) -> None:
    """A subclass that reorders and drops detections still gets each one's logits."""
    inner = build("retinanet")
    model = watched(inner)
    with torch.no_grad():
        call = model(_images())
    full = model.adapter.parse(call, Thresholds())
    changed = [{k: v[::3].flip(0) for k, v in own.items()} for own in call.output]
    got = model.adapter.parse(replace(call, output=changed), Thresholds())
    for i in range(len(SIZES)):
        np.testing.assert_array_equal(got.output.source_index[i], full.output.source_index[i][::3][::-1])
        np.testing.assert_allclose(_scores_of(got, i), got.output.scores[i], rtol=ROUNDING)


@pytest.mark.parametrize("name", ["faster", "retinanet", "ssdlite"])
def test_images_without_boxes(watched: Any, build: Any, name: str) -> None:
    inner = build(name)
    model = watched(inner)
    with torch.no_grad(), model.adapter.applied(Thresholds(score=1.0)):
        call = model(_images())
    parsed = model.adapter.parse(call, Thresholds(score=1.0))
    assert [len(b) for b in parsed.output.boxes] == [0, 0, 0]
    assert parsed.output.logits[0].shape == (0, CLASSES + FIRST[name])
    assert parsed.cap_hit == [False, False, False]


@pytest.mark.parametrize("name", BUILD)
def test_not_a_number(watched: Any, build: Any, name: str) -> None:
    inner = build(name)
    with torch.no_grad():
        for key, value in inner.named_parameters():
            if "cls_score.bias" in key or "classification_head" in key:
                value.fill_(torch.nan)
                break
    model = watched(inner)
    with torch.no_grad():
        call = model(_images())
    parsed = model.adapter.parse(call, Thresholds())
    _same(parsed, call.output, FIRST[name])


@pytest.mark.parametrize("name", ["faster", "fcos", "ssdlite"])
def test_under_autocast(watched: Any, build: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain runs as the model ran it: no detection has to be looked up by its values."""
    inner = build(name)
    if name == "faster":
        inner.transform.min_size, inner.transform.max_size = (
            (40,),
            40,
        )  # bfloat16 is slow without the instructions
    model = watched(inner)
    images = _images()[1:]  # one image alone has too few cells for the group norm of FCOS
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        call = model(images)
    monkeypatch.setattr("mld_core.adapters.torchvision.common.rows_by_value", None)
    parsed = model.adapter.parse(call, Thresholds())
    _same(parsed, call.output, FIRST[name])
    assert len(parsed.output.scores[0]) > 5
    np.testing.assert_allclose(_scores_of(parsed, 0), parsed.output.scores[0], atol=0.02)


def test_half_precision_heads_in_train(watched: Any, build: Any) -> None:
    """Types without a suppression kernel: the chain runs in float32."""
    model = watched(build("retinanet"))
    with torch.no_grad():
        call = model(_images())
    head = call.watched["head"][-1]
    for dtype in (torch.bfloat16, torch.float16):
        half = replace(head, output={k: v.to(dtype) for k, v in head.output.items()})
        train = ModelCall(call.args, {}, {}, {**call.watched, "head": [half]}, training=True)
        parsed = model.adapter.parse(train, Thresholds())
        assert len(parsed.output.scores[0]) > 5
        np.testing.assert_allclose(_scores_of(parsed, 0), parsed.output.scores[0], rtol=ROUNDING)


@pytest.mark.parametrize("name", ["faster", "retinanet"])
def test_parse_changes_nothing(watched: Any, build: Any, name: str) -> None:
    inner = build(name)
    model = watched(inner)
    with torch.no_grad():
        call = model(_images())
    state = {k: v.clone() for k, v in inner.state_dict().items()}
    attributes = {k: v for k, v in vars(inner).items() if not k.startswith("_")}
    random = torch.get_rng_state()
    output = copy.deepcopy(call.output)
    model.adapter.parse(call, Thresholds(score=0.3))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, inner.state_dict()[k]) for k, v in state.items())
    assert attributes == {k: v for k, v in vars(inner).items() if not k.startswith("_")}
    assert all(torch.equal(a[k], b[k]) for a, b in zip(output, call.output, strict=True) for k in a)


def test_kept_calls_hold_no_graph_and_no_pyramid(watched: Any, build: Any) -> None:
    inner = build("faster")
    model = watched(inner)
    call = model(_images())  # with gradients
    pooled, predicted = call.watched["roi_pool"][0], call.watched["box_predictor"][0]
    assert pooled.args == ()
    assert not predicted.args[0].requires_grad
    assert all(not t.requires_grad for own in call.output for t in own.values())
    assert model.adapter.parse(call, Thresholds()) is not None


@pytest.mark.parametrize("name", BUILD)
def test_truths_are_numbered_as_predictions(build: Any, name: str) -> None:
    adapter = find_adapter(build(name))
    targets = _targets(FIRST[name])
    targets[1]["iscrowd"] = torch.tensor([0, 1])
    targets[2] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    truths = adapter.truths(ModelCall((_images(), targets), {}, None), None)
    assert [t.labels.tolist() for t in truths] == [[0, 4], [0, 4], []]
    assert [t.input_id for t in truths] == ["7", "8", None]
    assert truths[1].columns["crowd"].tolist() == [False, True]
    assert truths[2].boxes.shape == (0, 4)
    joined = {"boxes": [t["boxes"] for t in targets], "labels": [t["labels"] for t in targets]}
    assert [len(t.labels) for t in adapter.truths(ModelCall((), {}, None), joined)] == [2, 2, 0]
    assert adapter.truths(ModelCall((), {}, None), None) is None


def test_other_peoples_class_names_are_not_taken() -> None:
    """`RetinaNet` is a class of mmdet and keras_cv too."""

    class RetinaNet(torch.nn.Module):
        pass

    with pytest.raises(ValueError, match="not a detector of a known family"):
        find_adapter(RetinaNet())


def test_a_predictor_without_a_class_layer_says_so(build: Any) -> None:
    inner = build("faster")
    inner.roi_heads.box_predictor = torch.nn.Identity()
    with pytest.raises(ValueError, match="pass n_class"):
        find_adapter(inner).n_class()


def test_a_batched_tensor_and_missing_hooks(build: Any) -> None:
    """Under a compiled model no hook may fire: boxes and scores are still the model's."""
    inner = build("ssdlite")
    adapter = find_adapter(inner)
    batch = torch.stack([_images()[2]] * 2)
    with torch.no_grad():
        output = inner(batch)
    parsed = adapter.parse(ModelCall((batch,), {}, output), Thresholds())
    _same(parsed, output, 1)
    assert parsed.activation == "none"
    assert parsed.output.logits is None
    assert [(g.height, g.width) for g in parsed.geometry] == [(64, 64), (64, 64)]


def test_truths_keep_area_and_crowd() -> None:
    from mld_core.adapters.finals import truths_of

    target = {
        "boxes": torch.tensor([[0.0, 0, 4, 4], [1, 1, 3, 3]]),
        "labels": torch.tensor([1, 2]),
        "area": torch.tensor([9.5, 2.0]),
        "iscrowd": torch.tensor([0, 1]),
        "masks": torch.zeros(2, 4, 4),
    }
    (truth,) = truths_of([target], 1)
    assert truth.columns["area"].tolist() == [9.5, 2.0]
    assert truth.columns["crowd"].tolist() == [False, True]
    assert truth.labels.tolist() == [0, 1]
