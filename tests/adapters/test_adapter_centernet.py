"""CenterNet's layout, by a stand-in (`fake_centernet.py`): decoding, in-place loss, truths."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import fake_centernet as fake
import numpy as np
import pytest
import torch

from mld_core.adapters.base import ModelCall, Thresholds
from mld_core.adapters.registry import UnknownDetectorError, find_adapter

LIMITS = Thresholds(0.5, None, 20)


def _images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def _net(**options: Any) -> Any:
    torch.manual_seed(0)
    net = fake.FakeDLASeg(**options).eval()
    with torch.no_grad():
        net.hm[-1].weight.normal_(std=3.0)
        net.wh[-1].bias.fill_(4.0)
    return net


@pytest.mark.parametrize("options", [{}, {"offsets": False}, {"size_per_class": True}, {"stacks": 2}])
def test_peaks_are_the_repositorys(watched: Any, options: dict[str, Any]) -> None:
    model = watched(_net(**options))
    with torch.no_grad():
        call = model(_images())
        expected = fake.fake_decode(model.model(_images())[-1], 20)
    parsed = model.adapter.parse(call, LIMITS)
    for i in range(2):
        own = expected[i][expected[i][:, 4] > 0.5].numpy()
        assert len(own) > 5
        np.testing.assert_allclose(parsed.output.boxes[i], own[:, :4] * 4, rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(parsed.output.scores[i], own[:, 4])
        np.testing.assert_array_equal(parsed.output.labels[i], own[:, 5])
        logits = torch.from_numpy(parsed.output.logits[i])
        picked = logits.sigmoid()[torch.arange(len(logits)), torch.from_numpy(parsed.output.labels[i])]
        np.testing.assert_allclose(picked.numpy(), parsed.output.scores[i], rtol=1e-6)
        assert parsed.output.features[i].shape == (len(own), 16)
        assert (parsed.output.source_index[i] < 16 * 24).all()
    assert (parsed.activation, parsed.background) == ("sigmoid", None)
    assert parsed.thresholds == LIMITS
    assert [(g.height, g.width) for g in parsed.geometry] == [(64, 96)] * 2
    assert model.adapter.n_class() == 3


def test_a_loss_that_overwrites_the_logits(watched: Any) -> None:
    net = _net()
    model = watched(net)
    with torch.no_grad():
        expected = model.adapter.parse(model(_images()), LIMITS)
    wrapped = watched(fake.FakeModelWithLoss(net).train())
    batch = {"input": _images(), "hm": torch.zeros(2, 3, 16, 24)}
    call = wrapped(batch)
    assert call.output is None
    got = wrapped.adapter.parse(call, LIMITS)
    for field in ("boxes", "scores", "labels", "logits"):
        for a, b in zip(getattr(got.output, field), getattr(expected.output, field), strict=True):
            np.testing.assert_array_equal(a, b)
    # the bare network, its logits overwritten by the caller afterwards
    call = model(_images())
    net(_images())[-1]["hm"].sigmoid_()
    np.testing.assert_array_equal(
        model.adapter.parse(call, LIMITS).output.logits[0], expected.output.logits[0]
    )


def test_limits(watched: Any) -> None:
    model = watched(_net())
    with torch.no_grad():
        call = model(_images())
    few = model.adapter.parse(call, Thresholds(score=0.5, max_detections=3))
    assert [len(s) for s in few.output.scores] == [3, 3]
    assert few.cap_hit == [True, True]
    assert model.adapter.parse(call, Thresholds()).thresholds == Thresholds(0.0, None, 100)  # as evaluated
    none = model.adapter.parse(call, Thresholds(score=1.0))
    assert none.output.boxes[0].shape == (0, 4)
    assert none.output.logits[0].shape == (0, 3)
    assert none.output.features[0].shape == (0, 16)
    assert none.cap_hit == [False, False]


def test_not_a_number_and_half_precision(watched: Any) -> None:
    model = watched(_net())
    with torch.no_grad():
        call = model(_images())
    broken = {k: v.clone() for k, v in call.output.items()}
    broken["hm"][0] = torch.nan
    parsed = model.adapter.parse(replace(call, output=broken), LIMITS)
    assert len(parsed.output.boxes[0]) == 0
    assert len(parsed.output.boxes[1]) > 5
    half = {k: v.to(torch.bfloat16) for k, v in call.output.items()}
    assert len(model.adapter.parse(replace(call, output=half), LIMITS).output.boxes[0]) > 5


def test_truths_of_the_repositorys_batches() -> None:
    adapter = find_adapter(_net())
    heat = torch.zeros(2, 3, 16, 24)
    heat[0, 2, 5, 7] = 1.0
    heat[1, 0, 1, 2] = 1.0
    heat[1, 1, 3, 4] = 1.0
    batch = {
        "input": _images(),
        "hm": heat,
        "reg_mask": torch.tensor([[1, 0], [1, 1]]),
        "ind": torch.tensor([[5 * 24 + 7, 0], [24 + 2, 3 * 24 + 4]]),
        "wh": torch.full((2, 2, 2), 4.0),
        "reg": torch.full((2, 2, 2), 0.25),
    }
    truths = adapter.truths(ModelCall((batch,), {}, None), None)
    assert [t.labels.tolist() for t in truths] == [[2], [0, 1]]
    np.testing.assert_allclose(truths[0].boxes, [[21, 13, 37, 29]])
    assert [t.input_id for t in truths] == [None, None]
    boxes = torch.zeros(2, 1, 6)
    boxes[1, 0] = torch.tensor([1.0, 2, 3, 4, 1, 2])
    batch["meta"] = {
        "gt_det": boxes,
        "img_id": torch.tensor([11, 12]),
        "c": torch.tensor([[50.0, 40]] * 2),
        "s": [192.0] * 2,
    }
    truths = adapter.truths(ModelCall((), {}, None), batch)
    assert [t.labels.tolist() for t in truths] == [[], [2]]
    np.testing.assert_allclose(truths[1].boxes, [[4, 8, 12, 16]])
    assert [t.input_id for t in truths] == ["11", "12"]
    lists = [{"boxes": [[0, 0, 4, 4]], "labels": [0]}]
    assert adapter.truths(ModelCall((batch,), {}, None), lists)[0].labels.tolist() == [0]


def test_the_way_back_to_the_original_image(watched: Any) -> None:
    model = watched(fake.FakeModelWithLoss(_net()).eval())
    meta = {"c": torch.tensor([[50.0, 40.0]] * 2), "s": torch.tensor([192.0, 192.0])}
    with torch.no_grad():
        call = model({"input": _images(), "hm": torch.zeros(2, 3, 16, 24), "meta": meta})
    geometry = model.adapter.parse(call, LIMITS).geometry
    # 192 original pixels across 96: the middle of the input is the centre
    assert geometry[0].affine == (2.0, 0.0, -46.0, 0.0, 2.0, -24.0)


def test_parse_changes_nothing(watched: Any) -> None:
    model = watched(_net())
    call = model(_images())
    before, random = copy.deepcopy(call.output), torch.get_rng_state()
    model.adapter.parse(call, LIMITS)
    assert all(torch.equal(v, call.output[k]) for k, v in before.items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_model_without_a_heatmap_is_not_taken() -> None:
    net = _net()
    net.heads = {"wh": 2}
    with pytest.raises(UnknownDetectorError, match="CenterNet"):
        find_adapter(net)
