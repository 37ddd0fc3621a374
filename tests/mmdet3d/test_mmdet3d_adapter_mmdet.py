"""mmdet's detectors with random weights: every final detection's logits, and the frame of boxes.

Runs in .venv-mmdet3d (`.ci/mmdet3d-env` builds it) and is skipped elsewhere.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed: run this in .venv-mmdet3d")

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData

from mld_core.adapters.base import Call, ModelCall, Parsed, Thresholds
from mld_core.adapters.mmdet.detectors import MMDetAdapter
from mld_core.adapters.registry import find_adapter

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
CLASSES = 5
SHAPES = [((96, 128), (2.0, 2.0)), ((96, 80), (0.5, 0.5))]  # network input (h, w), scale factor (w, h)
FILES = {
    "retinanet": "retinanet/retinanet_r18_fpn_1x_coco.py",
    "fcos": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "gfl": "gfl/gfl_r50_fpn_1x_coco.py",
    "ssdlite": "ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py",
    "yolox": "yolox/yolox_tiny_8xb8-300e_coco.py",
    "centernet": "centernet/centernet_r18_8xb16-crop512-140e_coco.py",
    "faster": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "cascade": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "detr": "detr/detr_r18_8xb2-500e_coco.py",
    "deformable": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "dino": "dino/dino-4scale_r50_8xb2-12e_coco.py",
}
SOFTMAX = ("ssdlite", "faster", "cascade", "detr")
TWO_STAGE = ("faster", "cascade")
_made: dict[str, Any] = {}


def _small(cfg: Any) -> Any:
    """A shallow copy of the shipped architecture: ResNet-18, narrow, five classes, nothing pretrained."""
    model = cfg.model
    if model.backbone.type == "ResNet":
        model.backbone.update(depth=18, norm_cfg={"type": "BN"}, style="pytorch")
        widths = [64, 128, 256, 512]
        neck = model.get("neck")
        if neck is not None and neck.type in {"FPN", "ChannelMapper"}:
            neck.in_channels = [widths[i] for i in model.backbone.out_indices]
    model.backbone.init_cfg = None
    for owner in (model.get("bbox_head"), model.get("roi_head", {}).get("bbox_head")):
        for head in owner if isinstance(owner, list) else [owner]:
            if head is not None:
                head.num_classes = CLASSES
    for part in ("encoder", "decoder"):
        if part in model:
            model[part].num_layers = 2
    if "num_queries" in model:
        model.num_queries = 30
        model.test_cfg.max_per_img = 20
    model.data_preprocessor.batch_augments = None
    if "roi_head" in model:
        model.test_cfg.rpn.update(nms_pre=100, max_per_img=60)
        model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=50)
    return model


@pytest.fixture
def build() -> Any:
    """A model of its own, with class layers whose logits vary."""

    def make(name: str) -> Any:
        if name not in _made:
            register_all_modules()
            torch.manual_seed(0)
            model = MODELS.build(_small(Config.fromfile(CONFIGS / FILES[name])))
            if name == "ssdlite":
                model.bbox_head.loss_cls = None  # mmdet 3.2.0 reads it in predict and never sets it
            model.init_weights()  # some parameters are memory as it was before
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for key, value in model.named_parameters():
                    if any(part in key for part in ("cls", "heatmap_head.2", "query_embedding", "obj")):
                        value.add_(torch.randn(value.shape, generator=generator), alpha=0.2)
            _made[name] = model
        return copy.deepcopy(_made[name]).eval()

    return make


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
