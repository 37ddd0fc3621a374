"""mmdet's detectors with random weights: every final detection's logits, and the frame of boxes.

Runs in .venv-mmdet3d (`.ci/mmdet3d-env` builds it) and is skipped elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed: run this in .venv-mmdet3d")

import torch
from mmdet.structures import DetDataSample
from mmdet_detectors import CLASSES, FILES, SOFTMAX, mmdet_detector
from mmengine.structures import InstanceData

from mld_core.adapters.base import Call, ModelCall, Parsed, Thresholds
from mld_core.adapters.mmdet.detectors import MMDetAdapter
from mld_core.adapters.registry import find_adapter

SHAPES = [((96, 128), (2.0, 2.0)), ((96, 80), (0.5, 0.5))]  # network input (h, w), scale factor (w, h)
TWO_STAGE = ("faster", "cascade")


@pytest.fixture
def build() -> Any:
    """Makes a model of its own."""
    return mmdet_detector


def _batch(*, truth: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    inputs, samples = [], []
    for k, ((h, w), (sx, sy)) in enumerate(SHAPES):
        inputs.append(torch.randint(0, 255, (3, h, w), generator=generator, dtype=torch.uint8))
        original = (round(h / sy), round(w / sx))
        meta = {
            "img_id": 40 + k,
            "img_path": f"{k}.jpg",
            "img_shape": (h, w),
            "ori_shape": original,
            "scale_factor": (sx, sy),
            "border": [0, 0, 0, 0],
        }
        sample = DetDataSample(metainfo=meta)
        if truth:
            boxes = torch.tensor([[4.0, 5, 40, 44]])
            sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([k]))
            sample.ignored_instances = InstanceData(
                bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.int64)
            )
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


class _Hooks:
    """What the tracer does around a detector, in its smallest form."""

    def __init__(self, model: Any) -> None:
        self.adapter = find_adapter(model)
        self.calls: dict[str | None, list[Call]] = {}
        self.training = False
        self.thresholds = Thresholds()
        for alias, module in [*self.adapter.watched().items(), (None, model)]:
            module.register_forward_hook(self._hook(alias), with_kwargs=True)

    def _hook(self, alias: str | None) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            self.calls.setdefault(alias, []).append(self.adapter.keep(alias, Call(args, kwargs, output)))
            if alias is None:
                self.training, self.thresholds = module.training, self.adapter.thresholds()

        return hook

    def call(self) -> ModelCall:
        own = self.calls.pop(None)[-1]
        watched = {alias: tuple(calls) for alias, calls in self.calls.items() if alias is not None}
        return ModelCall(own.args, own.kwargs, own.output, watched, self.training, self.thresholds)


def _predicted(model: Any, **settings: float) -> tuple[list[Any], ModelCall, Parsed]:
    adapter = find_adapter(model)
    hooks = _Hooks(model)
    with torch.no_grad(), adapter.applied(Thresholds(**settings)):
        outputs = model.test_step(_batch())
    call = hooks.call()
    parsed = adapter.parse(call, Thresholds(**settings))
    assert parsed is not None
    return outputs, call, parsed


@pytest.mark.parametrize("name", FILES)
def test_every_detection_has_its_logits(name: str, build: Any) -> None:
    model = build(name)
    outputs, _, parsed = _predicted(model, score=0.01)
    assert parsed.activation == ("softmax" if name in SOFTMAX else "sigmoid")
    assert parsed.background == (CLASSES if name in SOFTMAX else None)
    assert sum(map(len, parsed.output.scores)) > 10
    for i, sample in enumerate(outputs):
        found = sample.pred_instances
        order = found.scores.argsort(descending=True, stable=True)
        np.testing.assert_array_equal(parsed.output.scores[i], found.scores[order].numpy())
        np.testing.assert_array_equal(parsed.output.labels[i], found.labels[order].numpy())
        scale = np.array(SHAPES[i][1] * 2, np.float32)
        np.testing.assert_allclose(parsed.output.boxes[i], found.bboxes[order].numpy() * scale, rtol=1e-6)
        assert (parsed.output.source_index[i] >= 0).all()
        logits = torch.as_tensor(parsed.output.logits[i])
        assert logits.shape[1] == CLASSES + (name in SOFTMAX)
        scores = logits.softmax(-1) if name in SOFTMAX else logits.sigmoid()
        if parsed.quality is not None:
            scores = scores * torch.as_tensor(parsed.quality[i])[:, None]
        own = scores.gather(1, torch.as_tensor(parsed.output.labels[i])[:, None])[:, 0]
        np.testing.assert_allclose(own.numpy(), parsed.output.scores[i], atol=1e-5)
        assert np.isfinite(parsed.output.features[i]).all()
        (height, width), (sx, sy) = SHAPES[i]
        geometry = parsed.geometry[i]
        assert (geometry.height, geometry.width) == (height, width)
        assert geometry.affine == (1 / sx, 0.0, 0.0, 0.0, 1 / sy, 0.0)


@pytest.mark.parametrize("name", FILES)
def test_train_forward(name: str, build: Any) -> None:
    """Heads that put out all boxes yield detections in train too; two stages see sampled proposals only."""
    model = build(name)
    for module in model.modules():
        if isinstance(module, (torch.nn.Dropout, torch.nn.modules.batchnorm._BatchNorm)):
            module.p = 0.0
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    adapter = find_adapter(model)
    hooks = _Hooks(model)
    batch = model.data_preprocessor(_batch(truth=True), True)
    losses = model(**batch, mode="loss")
    assert isinstance(losses, dict)
    call = hooks.call()
    parsed = adapter.parse(call, Thresholds(0.01))
    truths = adapter.truths(call, None)
    np.testing.assert_allclose(truths[0].boxes, [[4, 5, 40, 44]])
    assert [t.input_id for t in truths] == ["40", "41"]
    if name in TWO_STAGE:
        assert parsed is None
        return
    assert sum(map(len, parsed.output.scores)) > 5
    for scores, logits, labels in zip(
        parsed.output.scores, parsed.output.logits, parsed.output.labels, strict=True
    ):
        assert np.isfinite(logits).all()
        assert len(scores) == len(labels) == len(logits)
    if name in {"detr", "deformable", "dino"}:
        assert max(int(s.max()) for s in parsed.output.source_index) < 30


def test_thresholds_are_the_heads_own(build: Any) -> None:
    for name, expected in (
        ("retinanet", Thresholds(0.05, 0.5, 100)),
        ("faster", Thresholds(0.05, 0.5, 100)),
        ("detr", Thresholds(None, None, 20)),
        ("centernet", Thresholds(None, None, 100)),
    ):
        model = build(name)
        adapter = find_adapter(model)
        assert isinstance(adapter, MMDetAdapter)
        assert adapter.thresholds() == expected
        assert adapter.n_class() == CLASSES
        assert adapter.uses_nms == (name in {"retinanet", "faster"})
        with adapter.applied(Thresholds(0.3, 0.4, 7)):
            inside = adapter.thresholds()
        assert inside.max_detections == 7
        assert inside.score == (0.3 if expected.score is not None else None)
        assert adapter.thresholds() == expected


def test_caps_and_nothing_found(build: Any) -> None:
    for name in ("retinanet", "faster"):
        _, _, few = _predicted(build(name), score=0.01, max_detections=3)
        assert few.cap_hit == [True, True]
        assert [len(s) for s in few.output.scores] == [3, 3]
        _, _, none = _predicted(build(name), score=1.0)
        assert [b.shape for b in none.output.boxes] == [(0, 4)] * 2
        assert none.cap_hit == [False, False]


def test_true_boxes_of_validation_stand_in_the_original_image(build: Any) -> None:
    model = build("retinanet")
    adapter = find_adapter(model)
    _, call, _ = _predicted(model, score=0.01)
    batch = _batch(truth=True)
    found = adapter.truths(call, batch)
    np.testing.assert_allclose(found[0].boxes, [[8, 10, 80, 88]])
    batch["data_samples"][0].gt_instances.bboxes = torch.tensor([[4.0, 5, 100, 90]])  # beyond 48 x 64
    np.testing.assert_allclose(adapter.truths(call, batch)[0].boxes, [[4, 5, 100, 90]])
    batch["data_samples"][0].ignored_instances = InstanceData(
        bboxes=torch.tensor([[1.0, 1, 9, 9]]), labels=torch.tensor([2])
    )
    first = adapter.truths(call, batch["data_samples"])[0]
    assert first.columns["ignore"].tolist() == [False, True]
    assert first.labels.tolist() == [0, 2]
