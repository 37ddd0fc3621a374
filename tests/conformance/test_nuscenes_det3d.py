"""det3d's detectors, CenterPoint and CenterFormer: what is recorded has the mAP of the boxes they give to the devkit.

Detector, neck, head and its conversion to the devkit's boxes are the repository's own, in the folder that
`MLD_CONFORMANCE` names; reader and backbone are the test's, and weights are random. True boxes are some of the
predictions, moved about, as the repository lays them out for its second stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("mmcv.ops", reason="needs the packages of .ci/mmdet3d-env")
pytest.importorskip("nuscenes")
import old_mm  # noqa: E402
from nuscenes_figures import NAMES, TASKS, compared, infos_of, judged, true_boxes  # noqa: E402
from torch import nn  # noqa: E402

from ml_debugger.records import load  # noqa: E402

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not old_mm.CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
    ),
]

FRAMES = 6
LOW, HIGH = -54.0, 54.0
STRIDE, CELLS, DEPTH = 4, 36, 16
VOXEL = (HIGH - LOW) / CELLS / STRIDE
BRANCHES = {"reg": (2, 2), "height": (1, 2), "dim": (3, 2), "rot": (2, 2), "vel": (2, 2)}
MOST = 40


class Seen(nn.Module):
    """In place of encoders: points counted in cells, and convolved."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.conv, self.alone = nn.Conv2d(1, DEPTH, 3, padding=1), alone

    def forward(self, clouds: Any, *_: Any) -> Any:
        cells = CELLS if self.alone else CELLS // 2  # CenterFormer's neck doubles them
        edges = [torch.linspace(LOW, HIGH, cells + 1)] * 2
        maps = [torch.histogramdd(cloud[:, :2].contiguous(), edges).hist for cloud in clouds]
        made = self.conv(torch.stack(maps)[:, None])
        return made if self.alone else (made, None)


class Read(nn.Module):
    """In place of a reader: passes the clouds on, and what a dynamic one tells beside."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.alone = alone

    def forward(self, clouds: Any, *_: Any) -> Any:
        return clouds if self.alone else (clouds, None, None)


def rules(tasks: Any) -> Any:
    from mmengine.config import ConfigDict

    return ConfigDict(
        post_center_limit_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0], score_threshold=0.1, pc_range=[LOW, LOW],
        out_size_factor=STRIDE, voxel_size=[VOXEL, VOXEL], circular_nms=True, min_radius=[1.0] * len(tasks),
        nms={"nms_post_max_size": 83, "nms_pre_max_size": 1000, "nms_iou_threshold": 0.2},
    )  # fmt: skip


def described(tasks: Any) -> list[dict[str, Any]]:
    return [{"num_class": len(one), "class_names": list(one)} for one in tasks]


def centerpoint(files: old_mm.Files) -> Any:
    none = {"type": "none"}
    head = {"type": "CenterHead", "in_channels": DEPTH, "tasks": described(TASKS), "common_heads": BRANCHES}
    made = files.find("PointPillars")(none, none, none, head, test_cfg=rules(TASKS))
    made.reader, made.backbone, made.neck = Read(alone=True), Seen(alone=True), nn.Identity()
    for task in made.bbox_head.tasks:
        task.hm[-1].weight.data.mul_(10)
        task.hm[-1].bias.data.zero_()
    return made


def two_stages(files: old_mm.Files) -> Any:
    """CenterPoint with its second stage, on features of the bird's-eye view."""
    from mmengine.config import ConfigDict

    first = {"type": "PointPillars", **{name: {"type": "none"} for name in ("reader", "backbone", "neck")}}
    head = {"type": "CenterHead", "in_channels": DEPTH, "tasks": described(TASKS), "common_heads": BRANCHES}
    layers = {name: [32] for name in ("SHARED_FC", "CLS_FC", "REG_FC")}
    second = {
        "type": "RoIHead", "input_channels": 5 * DEPTH, "code_size": 9,
        "model_cfg": ConfigDict(**layers, DP_RATIO=0.3, TARGET_CONFIG={}),
    }  # fmt: skip
    seen = {
        "type": "BEVFeatureExtractor",
        "pc_start": [LOW, LOW],
        "voxel_size": [VOXEL, VOXEL],
        "out_stride": STRIDE,
    }
    made = files.find("TwoStageDetector")(
        {**first, "bbox_head": head}, [seen], second, 500, num_point=5, test_cfg=rules(TASKS)
    )
    one = made.single_det
    one.reader, one.backbone, one.neck = Read(alone=True), Seen(alone=True), nn.Identity()
    for task in one.bbox_head.tasks:
        task.hm[-1].weight.data.mul_(10)
        task.hm[-1].bias.data.zero_()
    made.roi_head.cls_layers[-1].weight.data.mul_(5)
    made.roi_head.reg_layers[-1].weight.data.mul_(50)
    return made


def centerformer(*, many: bool) -> Callable[[old_mm.Files], Any]:
    """`many`: a heatmap and a head for each task, as configured for nuScenes; else one, and predicted overlaps."""

    def made(files: old_mm.Files) -> Any:
        from mmengine.config import ConfigDict

        tasks, none = TASKS if many else (NAMES,), {"type": "none"}
        neck = {
            "layer_nums": [1, 1, 1], "ds_num_filters": [2 * DEPTH, 2 * DEPTH, DEPTH], "num_input_features": DEPTH, "obj_num": MOST,
            "transformer_config": ConfigDict(
                depth=1, heads=2, dim_head=8, MLP_dim=16, DP_rate=0.0, out_att=False,
                cross_attention_kernel_size=[3, 3, 3],
            ),
            "logger": None,
        }  # fmt: skip
        neck |= (
            {"type": "RPN_transformer_multitask", "tasks": described(tasks)}
            if many
            else {"type": "RPN_transformer"}
        )
        neck |= {} if many else {"classes": len(NAMES)}
        head = {
            "type": "CenterHeadIoU_1d", "in_channels": 2 * DEPTH, "tasks": described(tasks), "iou_loss": not many,
            "common_heads": BRANCHES if many else {**BRANCHES, "iou": (1, 2)}, "iou_factor": [1] * len(NAMES),
        }  # fmt: skip
        import logging

        neck["logger"] = logging.getLogger("neck")
        model = files.find("VoxelNet_dynamic")(none, none, neck, head, test_cfg=rules(tasks))
        model.reader, model.backbone = Read(alone=False), Seen(alone=False)
        for layer in [one[-1] for one in (model.neck.hm_heads if many else [model.neck.hm_head])]:
            layer.weight.data.mul_(40)
            layer.bias.data.zero_()
        return model

    return made


@dataclass
class Repository:
    """What a test takes of one.

    Attributes:
        name: owner/name.
        blobs: files and their `git hash-object` at the commit in docs/compatibility.md.
        files: modules that are its own.
        make: the model.
        score: What a score is beside the class's probability: that itself (""), with a factor below 1, or of a
            second stage.
    """

    name: str
    blobs: dict[str, str]
    files: list[str]
    make: Callable[[old_mm.Files], Any]
    score: str = ""


COMMON = [
    *(f"det3d.models.{name}" for name in ("builder", "registry", "utils.misc", "utils.norm")),
    *(f"det3d.models.detectors.{name}" for name in ("base", "single_stage")),
    "det3d.core.utils.circle_nms_jit",
    "det3d.datasets.nuscenes.nusc_common",
]
FORMER = (
    "TuSimple/centerformer",
    {"det3d/models/bbox_heads/center_head_iou_1d.py": "5d09eea82496bbef328848500da61de2c8afdbd9"},
    [
        *COMMON, "det3d.models.utils.transformer", "det3d.models.necks.rpn_transformer",
        "det3d.models.necks.rpn_transformer_multitask", "det3d.models.bbox_heads.center_head_iou_1d",
        "det3d.models.detectors.voxelnet_dynamic",
    ],
)  # fmt: skip
REPOSITORIES = {
    "CenterPoint": Repository(
        "tianweiy/CenterPoint",
        {"det3d/models/bbox_heads/center_head.py": "87e8541690627ca74013513961b421c140789532"},
        [*COMMON, "det3d.models.bbox_heads.center_head", "det3d.models.detectors.point_pillars"],
        centerpoint,
    ),
    "CenterPoint, two stages": Repository(
        "tianweiy/CenterPoint",
        {"det3d/models/bbox_heads/center_head.py": "87e8541690627ca74013513961b421c140789532"},
        [
            *COMMON,
            "det3d.models.bbox_heads.center_head",
            "det3d.models.detectors.point_pillars",
            "det3d.models.detectors.two_stage",
            "det3d.models.second_stage.bird_eye_view",
            "det3d.models.roi_heads.roi_head",
            "det3d.models.roi_heads.roi_head_template",
            "det3d.core.bbox.box_torch_ops",
            "det3d.core.utils.center_utils",
        ],
        two_stages,
        "second",
    ),
    "CenterFormer, a head for each task": Repository(*FORMER, centerformer(many=True)),
    "CenterFormer, one head": Repository(*FORMER, centerformer(many=False), score="factor"),
}


class Base:
    """The devkit's database as far as the repository asks it: the poses of a frame."""

    def __init__(self, infos: list[dict[str, Any]]) -> None:
        self.infos = {info["token"]: info for info in infos}

    def get(self, table: str, token: str) -> dict[str, Any]:
        if table == "sample":
            return {"data": {"LIDAR_TOP": token}}
        if table == "sample_data":
            return {"calibrated_sensor_token": token, "ego_pose_token": token}
        name = "lidar2ego" if table == "calibrated_sensor" else "ego2global"
        info = self.infos[token]
        return {"rotation": info[f"{name}_rotation"], "translation": info[f"{name}_translation"]}


def annotated(
    files: old_mm.Files, infos: list[dict[str, Any]], answer: dict[str, Any]
) -> list[dict[str, Any]]:
    """A frame's predictions as `NuScenesDataset.evaluation` writes them."""
    token = answer["metadata"]["token"]
    copy = {name: value.clone() if torch.is_tensor(value) else value for name, value in answer.items()}
    boxes = files.find("_second_det_to_nusc_box")(copy)
    return [
        {
            "sample_token": token,
            "translation": box.center.tolist(),
            "size": box.wlh.tolist(),
            "rotation": box.orientation.elements.tolist(),
            "velocity": box.velocity[:2].tolist(),
            "detection_name": NAMES[box.label],
            "detection_score": float(box.score),
            "attribute_name": "",
        }
        for box in files.find("_lidar_nusc_box_to_global")(Base(infos), boxes, token)
    ]


@pytest.mark.parametrize("name", REPOSITORIES)
def test_figures_are_those_of_its_own_boxes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    repository = REPOSITORIES[name]
    root = old_mm.root_of(repository.name, repository.blobs)
    files = old_mm.Files({root: repository.files}, ("det3d", "ipdb"))
    old_mm.on_path(monkeypatch, files)
    torch.manual_seed(0)
    model = repository.make(files).eval()
    infos = infos_of(FRAMES)
    clouds = [
        torch.rand(3000, 5, generator=torch.Generator().manual_seed(n)) * 100 - 50 for n in range(FRAMES)
    ]

    def batch(first: int) -> dict[str, Any]:
        two = slice(first, first + 2)
        meta = [{"token": info["token"]} for info in infos[two]]
        voxels = {"voxels": clouds[two], "coordinates": None, "num_points": None, "num_voxels": [1, 1]}
        own = {**voxels, "shape": [None]} if name.startswith("CenterPoint") else {"points": clouds[two]}
        return {**own, "metadata": meta}

    with torch.no_grad():
        answers = [one for first in range(0, FRAMES, 2) for one in model(batch(first), return_loss=False)]
    found = {info["token"]: annotated(files, infos, one) for info, one in zip(infos, answers, strict=True)}
    true, rows, rng = {}, [], np.random.default_rng(0)
    for info in infos:
        boxes, kept = true_boxes(info, found[info["token"]], rng)
        true[info["token"]] = kept
        labels = [[NAMES.index(one["detection_name"]) + 1.0] for one in kept]
        flat = np.concatenate([boxes[:, :6], -boxes[:, 6:7] - np.pi / 2, boxes[:, 7:], labels], axis=1)
        rows.append(torch.tensor(flat, dtype=torch.float32))
    theirs = judged(infos, found, true)

    calls = [
        (
            batch(first),
            {"gt_boxes_and_cls": nn.utils.rnn.pad_sequence(rows[first : first + 2], batch_first=True)},
            [info["token"] for info in infos[first : first + 2]],
        )
        for first in range(0, FRAMES, 2)
    ]
    compared(name, model, calls, theirs, least=0.02)
    rows_said = load("net", "v1", "detections", "val").to_pandas()
    vectors = load("net", "v1", "vectors", "val").to_pandas()
    assert len(rows_said) == sum(len(one["scores"]) for one in answers) == len(vectors)
    logits = np.stack(vectors["logits"].to_numpy()).astype(float)
    assert np.isfinite(logits).all()
    own = 1 / (1 + np.exp(-logits[np.arange(len(logits)), rows_said["label"].to_numpy()]))
    if repository.score == "factor":
        assert (own >= rows_said["score"] - 2e-3).all()
    elif not repository.score:
        np.testing.assert_allclose(own, rows_said["score"], atol=2e-3)  # stored in half precision
