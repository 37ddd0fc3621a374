"""DETR in its authors' layout, by stand-ins: padded batches, both kinds of class layer, targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fake_detr as fake
import numpy as np
import pytest
import torch

from mld_core.adapters.base import Thresholds
from mld_core.adapters.detr.facebook import DetrAdapter
from mld_core.adapters.registry import find_adapter

SIZES = [(48, 64), (64, 40), (32, 32)]
CLASSES, QUERIES = 6, 12


def _images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, h, w, generator=generator) for h, w in SIZES]


def _targets(*, normalised: bool = True) -> list[dict[str, Any]]:
    out = []
    for k, (h, w) in enumerate(SIZES):
        boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25]]) if k != 1 else torch.zeros(0, 4)
        pixels = torch.tensor([[w / 4, 3 * h / 8, 3 * w / 4, 5 * h / 8]]) if k != 1 else torch.zeros(0, 4)
        out.append(
            {
                "boxes": boxes if normalised else pixels,
                "labels": torch.full((len(boxes),), k),
                "image_id": torch.tensor([10 + k]),
                "iscrowd": torch.zeros(len(boxes)),
                "size": torch.tensor([h, w]),
                "orig_size": torch.tensor([2 * h, 3 * w]),
            }
        )
    return out


@pytest.mark.parametrize("training", [False, True])
def test_softmax_layout(training: bool, watched: Any) -> None:
    torch.manual_seed(0)
    model = fake.FakeDETR().train(training)
    call = watched(model)(fake.FakeNestedTensor(_images()))
    adapter = find_adapter(model)
    assert isinstance(adapter, DetrAdapter)
    assert adapter.n_class() == CLASSES
    assert adapter.thresholds() == Thresholds(0.0)  # all that the post-processing returns
    parsed = adapter.parse(call, Thresholds(0.0))
    own = fake.fake_postprocess_softmax(call.output, torch.tensor(SIZES))
    assert (parsed.activation, parsed.background) == ("softmax", CLASSES)
    for i, frame in enumerate(own):
        order = frame["scores"].argsort(descending=True, stable=True)
        np.testing.assert_array_equal(parsed.output.source_index[i], order.numpy())
        np.testing.assert_array_equal(parsed.output.scores[i], frame["scores"][order].detach().numpy())
        np.testing.assert_array_equal(parsed.output.labels[i], frame["labels"][order].numpy())
        np.testing.assert_allclose(parsed.output.boxes[i], frame["boxes"][order].detach().numpy(), atol=1e-5)
        assert (parsed.geometry[i].height, parsed.geometry[i].width) == SIZES[i]
        with torch.no_grad():
            again = model.class_embed(torch.as_tensor(parsed.output.features[i]))
        np.testing.assert_allclose(again.numpy(), parsed.output.logits[i], atol=1e-5)


def test_lists_and_tensors_are_inputs_too(watched: Any) -> None:
    torch.manual_seed(0)
    model = fake.FakeDETR().eval()
    with torch.no_grad():
        a = watched(model)(fake.FakeNestedTensor(_images()))
        b = watched(model)(_images())
        c = watched(model)(torch.stack([_images()[2]] * 2))
    adapter = find_adapter(model)
    one, two = (adapter.parse(call, Thresholds(0.0)) for call in (a, b))
    for left, right in zip(one.output.boxes, two.output.boxes, strict=True):
        np.testing.assert_array_equal(left, right)
    assert [g.height for g in adapter.parse(c, Thresholds(0.0)).geometry] == [32, 32]


def test_sigmoid_layout_and_denoising(watched: Any) -> None:
    torch.manual_seed(0)
    model = fake.FakeDeformableDETR(denoising=5).train()
    call = watched(model)(fake.FakeNestedTensor(_images()), _targets())
    adapter = find_adapter(model)
    assert adapter.n_class() == CLASSES
    assert call.output["pred_logits"].shape[1] == QUERIES + 5
    real = {key: value[:, 5:] for key, value in call.output.items()}
    own = fake.fake_postprocess_sigmoid(real, torch.tensor(SIZES), 30)
    parsed = adapter.parse(call, Thresholds(0.0, None, 30))
    assert (parsed.activation, parsed.background, parsed.cap_hit) == ("sigmoid", None, [True] * 3)
    for i, frame in enumerate(own):
        np.testing.assert_array_equal(parsed.output.scores[i], frame["scores"].detach().numpy())
        np.testing.assert_array_equal(parsed.output.labels[i], frame["labels"].numpy())
        np.testing.assert_allclose(parsed.output.boxes[i], frame["boxes"].detach().numpy(), atol=1e-5)
        assert parsed.geometry[i].affine == (3.0, 0.0, 0.0, 0.0, 2.0, 0.0)
    assert parsed.output.features[0].shape == (30, 16)
    assert adapter.thresholds().max_detections == 100


def test_targets_beside_the_call_tell_the_original_size_too(watched: Any) -> None:
    model = fake.FakeDETR().eval()
    call = replace(watched(model)(fake.FakeNestedTensor(_images())), truth=_targets())
    parsed = find_adapter(model).parse(call, Thresholds(0.0))
    assert [frame.affine for frame in parsed.geometry] == [(3.0, 0.0, 0.0, 0.0, 2.0, 0.0)] * 3


def test_targets(watched: Any) -> None:
    model = fake.FakeDETR().eval()
    call = watched(model)(fake.FakeNestedTensor(_images()))
    adapter = find_adapter(model)
    for normalised in (True, False):
        found = adapter.truths(call, tuple(_targets(normalised=normalised)))
        np.testing.assert_allclose(found[0].boxes, [[16, 18, 48, 30]])
        assert [t.input_id for t in found] == ["10", "11", "12"]
        assert [len(t.boxes) for t in found] == [1, 0, 1]
        assert found[2].labels.tolist() == [2]
    assert adapter.truths(call, None) is None


def test_not_finite_and_nothing_found(watched: Any) -> None:
    model = fake.FakeDETR().eval()
    with torch.no_grad():
        call = watched(model)(fake.FakeNestedTensor(_images()))
    call.output["pred_logits"][0] = torch.nan
    parsed = find_adapter(model).parse(call, Thresholds(0.0))
    assert [len(s) for s in parsed.output.scores] == [0, QUERIES, QUERIES]
    none = find_adapter(model).parse(call, Thresholds(1.0))
    assert [b.shape for b in none.output.boxes] == [(0, 4)] * 3
