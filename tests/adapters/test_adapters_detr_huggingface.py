"""Query detectors of transformers with random weights: equal to their image processors' own post-processing."""

from __future__ import annotations

import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from huggingface_detectors import (  # noqa: E402
    BUILD,
    CLASSES,
    DENOISING,
    HEIGHT,
    QUERIES,
    SOFTMAX,
    WIDTH,
    huggingface_detector,
    processor_of,
)

from mld_core.adapters.base import Call, ModelCall, Parsed, Thresholds  # noqa: E402
from mld_core.adapters.detr.huggingface import HuggingFaceDetrAdapter  # noqa: E402
from mld_core.adapters.registry import find_adapter  # noqa: E402

ALL = Thresholds(0.0)
_made: dict[str, Any] = {}


@pytest.fixture
def build() -> Any:
    """One model per family."""

    def make(name: str) -> Any:
        if name not in _made:
            _made[name] = huggingface_detector(name)
        return _made[name].eval()

    return make


def _pixels(images: int = 2) -> torch.Tensor:
    return torch.randn(images, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))


def _labels() -> list[dict[str, torch.Tensor]]:
    boxes = torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.25, 0.5, 0.1, 0.2]])
    size = torch.tensor([HEIGHT, WIDTH])
    full = {
        "boxes": boxes,
        "class_labels": torch.tensor([1, 4]),
        "image_id": torch.tensor([7]),
        "iscrowd": torch.tensor([0, 1]),
        "size": size,
        "orig_size": size * 2,
    }
    empty = {**full, "boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0, dtype=torch.int64)}
    return [full, {**empty, "iscrowd": torch.zeros(0), "image_id": torch.tensor([8])}]


def _parse(call: ModelCall, model: Any, limits: Thresholds = ALL) -> Parsed:
    parsed = find_adapter(model).parse(call, limits)
    assert parsed is not None
    return parsed


@pytest.mark.parametrize("name", BUILD)
def test_detections_are_the_processors_own(name: str, build: Any, watched: Any) -> None:
    model = build(name)
    said: list[Any] = []
    handle = model.register_forward_hook(lambda _module, _args, output: said.append(output))
    with torch.no_grad():
        call = watched(model)(_pixels())
    handle.remove()
    (outputs,) = said  # of the same call: of another one, on threads, the last bit may differ
    processor = processor_of(name)
    threshold = float(outputs.logits.float().sigmoid().median()) if name not in SOFTMAX else 0.1
    own = processor.post_process_object_detection(outputs, threshold, [(HEIGHT, WIDTH)] * 2)
    parsed = _parse(call, model, Thresholds(threshold))
    assert parsed.activation == ("softmax" if name in SOFTMAX else "sigmoid")
    assert parsed.background == (CLASSES if name in SOFTMAX else None)
    assert sum(map(len, parsed.output.scores)) > 4
    assert parsed.output.logits is not None
    assert parsed.output.features is not None
    assert parsed.output.source_index is not None
    for i, frame in enumerate(own):
        order = frame["scores"].argsort(descending=True, stable=True)
        # The processor takes the sigmoid of all logits, we of those that are kept: at the end of an array some
        # processors (AVX-512) round the last bit another way.
        np.testing.assert_array_max_ulp(parsed.output.scores[i], frame["scores"][order].numpy(), maxulp=1)
        np.testing.assert_array_equal(parsed.output.labels[i], frame["labels"][order].numpy())
        np.testing.assert_array_equal(parsed.output.boxes[i], frame["boxes"][order].numpy())
        rows = outputs.logits[i][parsed.output.source_index[i]]
        np.testing.assert_array_equal(parsed.output.logits[i], rows.numpy())
        assert parsed.output.features[i].shape == (len(order), 32)
        assert parsed.geometry is not None
        assert (parsed.geometry[i].height, parsed.geometry[i].width) == (
            HEIGHT,
            WIDTH,
        )


@pytest.mark.parametrize("name", BUILD)
def test_features_are_what_the_class_layer_sees(name: str, build: Any, watched: Any) -> None:
    model = build(name)
    with torch.no_grad():
        parsed = _parse(watched(model)(_pixels()), model)
        layer = getattr(model, "class_labels_classifier", None)
        if layer is None:
            layer = getattr(model, "class_embed", None) or model.model.decoder.class_embed
            layer = layer[1] if name == "deformable two-stage" else layer[-1]
        again = layer(torch.as_tensor(parsed.output.features[0]))
    np.testing.assert_allclose(again.numpy(), parsed.output.logits[0], atol=1e-4)


@pytest.mark.parametrize("name", BUILD)
def test_train_forward_yields_the_real_queries(name: str, build: Any, watched: Any) -> None:
    model = build(name).train()
    labels = _labels()
    call = watched(model)(pixel_values=_pixels(), labels=labels)
    raw = model(pixel_values=_pixels(), labels=labels).logits
    assert (raw.shape[1] > QUERIES) == (name in DENOISING)
    parsed = _parse(call, model, Thresholds(0.0, None, 1000))
    assert max(int(q.max()) for q in parsed.output.source_index) == QUERIES - 1
    assert len(parsed.output.scores[0]) == QUERIES * (1 if name in SOFTMAX else CLASSES)
    scale = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
    real = call.output["pred_boxes"][0, -QUERIES:].numpy()
    expected = np.concatenate([real[:, :2] - real[:, 2:] / 2, real[:, :2] + real[:, 2:] / 2], 1) * scale
    np.testing.assert_allclose(parsed.output.boxes[0], expected[parsed.output.source_index[0]], atol=1e-3)
    assert not any(isinstance(v, torch.Tensor) and v.requires_grad for v in call.output.values())
    assert parsed.geometry[0].affine == (2.0, 0.0, 0.0, 0.0, 2.0, 0.0)


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_labels_become_pixels_of_the_input(name: str, build: Any, watched: Any) -> None:
    model = build(name).train()
    call = watched(model)(pixel_values=_pixels(), labels=_labels())
    found = find_adapter(model).truths(call, None)
    assert [t.input_id for t in found] == ["7", "8"]
    np.testing.assert_allclose(found[0].boxes, [[36, 16, 60, 48], [19.2, 25.6, 28.8, 38.4]], atol=1e-4)
    assert found[0].labels.tolist() == [1, 4]
    assert found[0].columns["crowd"].tolist() == [False, True]
    assert found[1].boxes.shape == (0, 4)
    assert find_adapter(model).truths(call, [{"boxes": [[1, 2, 3, 4]], "labels": [0]}]) is None


def test_padded_batches_of_the_image_processor(build: Any, watched: Any) -> None:
    """Boxes drawn on the original images come back to them through the affine map."""
    model = build("detr")
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    images = [np.full((100, 200, 3), 120, np.uint8), np.full((200, 100, 3), 60, np.uint8)]
    box = [20.0, 30.0, 60.0, 40.0]  # x, y, w, h
    notes = [
        {
            "image_id": i,
            "annotations": [{"bbox": box, "category_id": 2, "area": 2400.0, "iscrowd": 0, "image_id": i}],
        }
        for i in range(2)
    ]
    batch = processor(images=images, annotations=notes, return_tensors="pt")
    assert batch["pixel_mask"].min() == 0
    adapter = find_adapter(model)
    with torch.no_grad():
        call = watched(model)(**batch)
        alone = watched(model)(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"])
    parsed = adapter.parse(call, Thresholds(0.0))
    truths = adapter.truths(call, batch["labels"])
    for truth, geometry in zip(truths, parsed.geometry, strict=True):
        sx, _, _, _, sy, _ = geometry.affine
        original = truth.boxes[0] * [sx, sy, sx, sy]
        np.testing.assert_allclose(original, [20, 30, 80, 70], atol=0.5)
    height, width = batch["pixel_values"].shape[-2:]
    again = adapter.parse(alone, Thresholds(0.0))  # one frame holds for a run
    np.testing.assert_array_equal(again.output.boxes[0], parsed.output.boxes[0])
    valid = find_adapter(model).parse(alone, Thresholds(0.0))
    for i in range(2):
        mask = batch["pixel_mask"][i]
        ratio = np.array([mask[0].sum() / width, mask[:, 0].sum() / height] * 2)
        np.testing.assert_allclose(valid.output.boxes[i], parsed.output.boxes[i] * ratio, rtol=1e-5)
        assert valid.geometry[i].affine is None


def test_limits_cut_and_say_so(build: Any, watched: Any) -> None:
    for name in ("detr", "deformable"):
        model = build(name)
        with torch.no_grad():
            call = watched(model)(_pixels())
        parsed = _parse(call, model, Thresholds(0.0, None, 3))
        assert parsed.cap_hit == [True, True]
        assert [len(s) for s in parsed.output.scores] == [3, 3]
        assert (np.diff(parsed.output.scores[0]) <= 0).all()
        none = _parse(call, model, Thresholds(0.9999999))
        assert [b.shape for b in none.output.boxes] == [(0, 4)] * 2
        assert none.cap_hit == [False, False]
        assert none.output.logits[0].shape[0] == 0
        assert none.thresholds == Thresholds(0.9999999, None, 300 if name == "detr" else 100)


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_queries_that_are_not_finite_are_no_detections(name: str, build: Any) -> None:
    model = build(name)
    with torch.no_grad():
        outputs = model(pixel_values=_pixels())
    outputs.logits[0, :5] = torch.nan
    outputs.logits[1] = torch.nan
    call = ModelCall((_pixels(),), {}, outputs)
    parsed = _parse(call, model)
    assert min(parsed.output.source_index[0]) >= 5
    assert np.isfinite(parsed.output.scores[0]).all()
    assert len(parsed.output.scores[1]) == 0


def test_tuples_and_half_precision(build: Any, watched: Any) -> None:
    model = build("rt_detr")
    adapter = find_adapter(model)
    with torch.no_grad():
        full, plain = watched(model)(_pixels()), watched(model)(_pixels(), return_dict=False)
        a, b = _parse(full, model), _parse(plain, model)
        np.testing.assert_array_equal(a.output.scores[0], b.output.scores[0])
        assert b.output.features is None
        half = {k: v.half() if isinstance(v, torch.Tensor) else v for k, v in full.output.items()}
        c = adapter.parse(ModelCall((), full.kwargs, half), Thresholds(0.0))
    np.testing.assert_allclose(np.sort(c.output.scores[0]), np.sort(a.output.scores[0]), atol=5e-3)
    assert adapter.keep(None, Call((_pixels(),), {}, None)).output is None
    assert adapter.parse(ModelCall((_pixels(),), {}, None), Thresholds()) is None


def test_what_the_config_tells(build: Any) -> None:
    model = build("detr")
    adapter = find_adapter(model)
    assert isinstance(adapter, HuggingFaceDetrAdapter)
    assert adapter.n_class() == CLASSES
    assert adapter.class_names() is None
    assert not adapter.uses_nms
    assert adapter.watched() == {}
    assert adapter.thresholds() == Thresholds()
    assert find_adapter(build("conditional")).thresholds().max_detections == 100
    assert find_adapter(build("d_fine")).thresholds().max_detections == QUERIES
    before = model.config.id2label
    model.config.id2label = {0: "N/A", 1: "cat", 2: "dog", 3: "N/A", 4: "cow", 5: "hen"}
    assert adapter.class_names() == ["N/A", "cat", "dog", "N/A", "cow", "hen"]
    model.config.id2label = before
    assert not HuggingFaceDetrAdapter.detect(torch.nn.Linear(1, 1))
    outputs = {"logits": torch.zeros(1, 4, 9), "pred_boxes": torch.zeros(1, 4, 4)}
    with pytest.raises(ValueError, match=r"width 9 for config\.num_labels=6"):
        adapter.parse(ModelCall((torch.zeros(1, 3, 8, 8),), {}, outputs), Thresholds())
