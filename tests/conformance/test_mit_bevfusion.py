"""MIT BEVFusion's own model, head and coder, on a CPU: the rows that are read are those it returns.

The checkout lies in the folder that `MLD_CONFORMANCE` names; the packages are those of `.ci/mmdet3d-env`. It is written
for MMCV 1 and a copy of MMDetection3D of its own: what its files import of these is empty here, or is today's. The
encoder of points and the decoder of the map are the test's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from mld_core.adapters.base import Call, ModelCall, Thresholds  # noqa: E402
from mld_core.adapters.registry import find_adapter  # noqa: E402

CHECKOUTS = os.environ.get("MLD_CONFORMANCE")
BLOB = "4331e6ce42d82f80a7ec6c58298ca6e3d1985d1d"
"""`git hash-object mmdet3d/models/heads/bbox/transfusion.py` at commit 326653dc06e0."""

RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
VOXEL, STRIDE, CELLS, DEPTH = 0.45, 8, 30, 16

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
    ),
]


class Registry:
    """What `@HEADS.register_module()` needs."""

    def register_module(self) -> Any:
        return lambda cls: cls


def _as_it_is(*_: Any, **__: Any) -> Any:
    return lambda function: function


def _stub(patch: pytest.MonkeyPatch, name: str, **holds: Any) -> None:
    module = types.ModuleType(name)
    module.__path__ = []  # type: ignore[attr-defined]
    vars(module).update(holds)
    patch.setitem(sys.modules, name, module)


def _read(patch: pytest.MonkeyPatch, root: Path, path: str) -> Any:
    """A file of the checkout under its own name."""
    name = "mmdet3d." + path.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, root / "mmdet3d" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


class Counted(nn.Module):
    """In place of a sparse encoder: points counted in cells, and convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, DEPTH, 3, padding=1)

    def forward(self, points: Any) -> Any:
        maps = []
        for cloud in points:
            edges = [torch.linspace(RANGE[0], RANGE[3], CELLS + 1)] * 2
            maps.append(torch.histogramdd(cloud[:, :2].contiguous(), edges).hist)
        return self.conv(torch.stack(maps)[:, None])


@pytest.fixture
def bevfusion(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes the model with a head, and the class of its boxes."""
    mmcv, structures = pytest.importorskip("mmcv.cnn"), pytest.importorskip("mmdet3d.structures")
    places = [Path(CHECKOUTS or "") / name for name in ("mit-han-lab/bevfusion", "bevfusion")]
    root = next((place for place in places if (place / "mmdet3d/models/heads/bbox").is_dir()), None)
    if root is None:
        pytest.skip(f"mit-han-lab/bevfusion is not in {CHECKOUTS}")
    body = (root / "mmdet3d/models/heads/bbox/transfusion.py").read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    assert digest == BLOB, f"{root} is not at commit 326653dc06e0"
    from mmdet.models.utils import multi_apply
    from mmengine.model import kaiming_init

    monkeypatch.setattr(mmcv, "kaiming_init", kaiming_init, raising=False)
    _stub(monkeypatch, "mmcv.runner", force_fp32=_as_it_is, auto_fp16=_as_it_is, BaseModule=_Base)
    _stub(monkeypatch, "mmdet.core.bbox", BaseBBoxCoder=object)
    _stub(monkeypatch, "mmdet.core.bbox.builder", BBOX_CODERS=Registry())
    for name in [name for name in sys.modules if name.split(".")[0] == "mmdet3d"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("mmdet3d", "mmdet3d.models.heads", "mmdet3d.models.heads.bbox", "mmdet3d.core.bbox.coders"):
        _stub(monkeypatch, name)
    _stub(monkeypatch, "mmdet3d.models.fusion_models")
    coders = {
        name: getattr(_read(monkeypatch, root, f"core/bbox/coders/{file}.py"), name)
        for name, file in (
            ("TransFusionBBoxCoder", "transfusion_bbox_coder"),
            ("CenterPointBBoxCoder", "centerpoint_bbox_coders"),
        )
    }
    absent = dict.fromkeys(("AssignResult", "build_assigner", "build_sampler"))
    built = {"build_bbox_coder": lambda config: _built(coders, config), "multi_apply": multi_apply}
    _stub(monkeypatch, "mmdet.core", **absent, **built)
    _stub(monkeypatch, "mmdet3d.ops", Voxelization=None, DynamicScatter=None)
    _stub(monkeypatch, "mmdet3d.ops.iou3d")
    _stub(monkeypatch, "mmdet3d.ops.iou3d.iou3d_utils", nms_gpu=None, nms_normal_gpu=None)
    circle = _read(monkeypatch, root, "core/post_processing/box3d_nms.py").circle_nms
    shapes = ("PseudoSampler", "draw_heatmap_gaussian", "gaussian_radius", "xywhr2xyxyr")
    _stub(monkeypatch, "mmdet3d.core", circle_nms=circle, **dict.fromkeys(shapes))
    known: dict[str, Any] = {}
    builders = {
        **dict.fromkeys(("build_backbone", "build_neck"), lambda made: made),
        "build_head": lambda made: made if isinstance(made, nn.Module) else _built(known, made),
        "build_loss": lambda _: nn.Identity(),
    }
    _stub(
        monkeypatch,
        "mmdet3d.models.builder",
        HEADS=Registry(),
        build_fuser=None,
        build_vtransform=None,
        **builders,
    )
    builder = sys.modules["mmdet3d.models.builder"]
    _stub(monkeypatch, "mmdet3d.models", FUSIONMODELS=Registry(), builder=builder)
    parts = _read(monkeypatch, root, "models/utils/transformer.py")
    _stub(monkeypatch, "mmdet3d.models.utils", **{name: getattr(parts, name) for name in parts.__all__})
    queries = _read(monkeypatch, root, "models/heads/bbox/transfusion.py")
    centres = _read(monkeypatch, root, "models/heads/bbox/centerpoint.py")
    known["SeparateHead"] = centres.SeparateHead
    _read(monkeypatch, root, "models/fusion_models/base.py")
    fusion = _read(monkeypatch, root, "models/fusion_models/bevfusion.py").BEVFusion
    heads = {
        "transfusion": lambda: _queries(queries.TransFusionHead),
        "center": lambda: _centres(centres.CenterHead),
    }
    return lambda kind: (_model(fusion, heads[kind]()), structures.LiDARInstance3DBoxes)


def _built(known: dict[str, Any], config: dict[str, Any]) -> Any:
    """Of the class that `type` names."""
    return known[config["type"]](**{name: value for name, value in config.items() if name != "type"})


class _Base(nn.Module):
    """MMCV 1's, as far as it is used."""

    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__()
        self.init_cfg = init_cfg


PLACE = {"out_size_factor": STRIDE, "voxel_size": [VOXEL, VOXEL]}
LIMITS = {"post_center_range": [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0], "score_threshold": 0.0}
BRANCHES = {"height": [1, 2], "dim": [3, 2], "rot": [2, 2], "vel": [2, 2]}


def _queries(head: Any) -> Any:
    torch.manual_seed(0)
    grid, place = CELLS * STRIDE, {**PLACE, "pc_range": RANGE[:2]}
    made = head(
        num_proposals=40, auxiliary=True, in_channels=DEPTH, hidden_channel=DEPTH, num_classes=10,
        num_decoder_layers=1, num_heads=2, nms_kernel_size=3, ffn_channel=32,
        common_heads={"center": [2, 2], **BRANCHES}, loss_cls={"use_sigmoid": True},
        bbox_coder={"type": "TransFusionBBoxCoder", **place, **LIMITS, "code_size": 10},
        test_cfg={**place, "dataset": "nuScenes", "grid_size": [grid, grid, 1], "nms_type": None},
    )  # fmt: skip
    for layer in (made.heatmap_head[-1], made.prediction_heads[0].heatmap[-1]):
        layer.weight.data.mul_(10)
    return made


def _centres(head: Any) -> Any:
    torch.manual_seed(0)
    tasks = [
        ["car"],
        ["truck", "construction_vehicle"],
        ["bus", "trailer"],
        ["barrier"],
        ["motorcycle", "bicycle"],
    ]
    made = head(
        in_channels=DEPTH, tasks=[*tasks, ["pedestrian", "traffic_cone"]], share_conv_channel=DEPTH,
        common_heads={"reg": [2, 2], **BRANCHES},
        bbox_coder={
            "type": "CenterPointBBoxCoder", **PLACE, "pc_range": RANGE, **LIMITS, "max_num": 60, "code_size": 9,
        },
        test_cfg={**PLACE, "nms_type": "circle", "min_radius": [4, 12, 10, 1, 0.85, 0.175], "post_max_size": 83},
    )  # fmt: skip
    for task in made.task_heads:
        task.heatmap[-1].weight.data.mul_(10)
    return made


def _model(fusion: Any, head: Any) -> Any:
    one = {"backbone": nn.Identity(), "neck": nn.Identity()}
    model = fusion(encoders={}, fuser=None, decoder=one, heads={"object": head, "map": None})
    model.encoders["lidar"] = nn.ModuleDict({"backbone": Counted()})
    model.extract_features = lambda points, sensor: model.encoders[sensor]["backbone"](points)
    return model.eval()


def watched_call(model: Any, *args: Any) -> Any:
    """The call as the tracer hands it to the adapter, which it returns too."""
    adapter, seen, handles = find_adapter(model), {}, []

    def keep(alias: str) -> Any:
        def hook(_: Any, given: Any, named: Any, output: Any) -> None:
            seen.setdefault(alias, []).append(adapter.keep(alias, Call(given, named, output)))

        return hook

    for alias, module in adapter.watched().items():
        handles.append(module.register_forward_hook(keep(alias), with_kwargs=True))
    with torch.no_grad():
        output = model(*args)
    for handle in handles:
        handle.remove()
    own = adapter.keep(None, Call(args, {}, output))
    return adapter, output, ModelCall(own.args, own.kwargs, own.output, seen, False, adapter.thresholds())


@pytest.mark.parametrize("kind", ["transfusion", "center"])
def test_every_row_and_the_place_it_is_of(kind: str, bevfusion: Any) -> None:
    model, boxes_type = bevfusion(kind)
    clouds = [torch.rand(3000, 5, generator=torch.Generator().manual_seed(n)) * 100 - 50 for n in (1, 2)]
    clouds = clouds[: 1 if kind == "transfusion" else 2]  # that head takes one frame at a time
    metas = [{"box_type_3d": boxes_type, "token": str(number)} for number in range(len(clouds))]
    nothing: list[Any] = [None] * 8
    adapter, output, call = watched_call(model, torch.zeros(1), clouds, *nothing, metas, None)
    assert (adapter.identity.layout.name, adapter.identity.head.kind) == ("mit_bevfusion", kind)
    parsed = adapter.parse(call, Thresholds(0.0, None, 1000))
    assert parsed is not None
    assert len(output) == len(parsed.output.boxes) == len(clouds)
    for frame, own in enumerate(output):
        rows, boxes = own["boxes_3d"].tensor.numpy(), parsed.output.boxes[frame]
        labels = parsed.output.labels[frame]
        assert len(boxes) == len(rows) > 20
        np.testing.assert_allclose(parsed.output.scores[frame], own["scores_3d"], atol=1e-6)
        assert labels.tolist() == own["labels_3d"].tolist()
        np.testing.assert_allclose(boxes[:, :3], rows[:, :3], atol=1e-4)
        np.testing.assert_allclose(np.sort(boxes[:, 3:6], axis=1), np.sort(rows[:, 3:6], axis=1), rtol=1e-4)
        np.testing.assert_allclose(parsed.output.velocities[frame], rows[:, 7:9], atol=1e-4)
        logits = np.asarray(parsed.output.logits[frame])
        assert np.isfinite(logits).all()
        chosen = 1 / (1 + np.exp(-logits[np.arange(len(rows)), labels].astype(float)))
        factor = 1.0 if parsed.quality is None else parsed.quality[frame]
        np.testing.assert_allclose(chosen * factor, own["scores_3d"], rtol=1e-4)
