"""Repositories for nuScenes that run on MMCV 1: what is recorded has the mAP of the file they write for the devkit.

Model, head, coder, boxes, data set and its conversion to the devkit's boxes are the repository's own, in the folder that
`MLD_CONFORMANCE` names; what comes before the head is the test's (of BEVDet4D and ADLab's BEVFusion only their backbones
are), and weights are random. True boxes are some of the predictions, moved about, as the repository's converter writes
them into infos and its data set reads them.
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
pytest.importorskip("mmdet")
import old_mm  # noqa: E402
from mmdet.models.backbones.resnet import BasicBlock  # noqa: E402
from nuscenes_figures import (  # noqa: E402
    NAMES,
    TASKS,
    compared,
    data_set,
    infos_of,
    judged,
    matrix_of,
    true_boxes,
    written,
)
from torch import nn  # noqa: E402

from ml_debugger.records import load  # noqa: E402

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not old_mm.CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
    ),
]

FRAMES = 6
RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
VOXEL, STRIDE, CELLS, DEPTH = 0.45, 8, 30, 16
PLACE = {"out_size_factor": STRIDE, "voxel_size": [VOXEL, VOXEL]}
LIMITS = {"post_center_range": [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0], "score_threshold": 0.0}
BRANCHES = {"height": (1, 2), "dim": (3, 2), "rot": (2, 2), "vel": (2, 2)}
NOTHING = {"type": "none"}


class Seen(nn.Module):
    """In place of encoders: points counted in cells, and convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, DEPTH, 3, padding=1)

    def forward(self, clouds: Any) -> Any:
        edges = [torch.linspace(RANGE[0], RANGE[3], CELLS + 1)] * 2
        maps = [torch.histogramdd(cloud[:, :2].contiguous(), edges).hist for cloud in clouds]
        return self.conv(torch.stack(maps)[:, None])


def suppressed(boxes: Any, scores: Any, thresh: float, pre_maxsize: int, post_max_size: int) -> Any:
    """In place of `nms_gpu`: [x1, y1, x2, y2, angle] as its kernel understands them."""
    from mmcv.ops import nms_rotated

    order = scores.sort(descending=True)[1][:pre_maxsize]
    low, high, angle = boxes[order, :2], boxes[order, 2:4], boxes[order, 4:]
    rows = torch.cat([(low + high) / 2, high - low, -angle], 1)
    kept = nms_rotated(rows, scores[order], thresh)[1].sort().values
    return order[kept][:post_max_size]


def query_head() -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration of a TransFusion head, and its rules."""
    grid, place = CELLS * STRIDE, {**PLACE, "pc_range": RANGE[:2]}
    head = {
        "type": "TransFusionHead", "num_proposals": 60, "in_channels": DEPTH, "hidden_channel": DEPTH,
        "num_classes": 10, "num_decoder_layers": 1, "num_heads": 2, "nms_kernel_size": 3, "ffn_channel": 32,
        "common_heads": {"center": (2, 2), **BRANCHES}, "loss_cls": {**NOTHING, "use_sigmoid": True},
        "bbox_coder": {"type": "TransFusionBBoxCoder", **place, **LIMITS, "code_size": 10},
    }  # fmt: skip
    return head, {**place, "dataset": "nuScenes", "grid_size": [grid, grid, 1], "nms_type": None}


def centre_head(tasks: list[Any], range_: list[float]) -> dict[str, Any]:
    """Configuration of a centre head."""
    coder = {
        "type": "CenterPointBBoxCoder",
        **PLACE,
        **LIMITS,
        "pc_range": range_,
        "max_num": 60,
        "code_size": 9,
    }
    return {
        "type": "CenterHead", "in_channels": DEPTH, "tasks": tasks, "share_conv_channel": DEPTH,
        "common_heads": {"reg": (2, 2), **BRANCHES}, "bbox_coder": coder,
    }  # fmt: skip


def louder(head: Any) -> Any:
    """Scores of random weights differ."""
    layers = [task.heatmap[-1] for task in getattr(head, "task_heads", [])]
    if not layers:
        layers = [head.heatmap_head[-1], head.prediction_heads[0].heatmap[-1]]
    for layer in layers:
        layer.weight.data.mul_(10)
    return head


def transfusion(files: old_mm.Files) -> Any:
    """The detector with its LiDAR head."""
    from mmengine.config import ConfigDict

    head, rules = query_head()
    made = files.find("TransFusionDetector")(
        pts_bbox_head=ConfigDict(head, initialize_by_heatmap=True), test_cfg=ConfigDict(pts=rules)
    )
    made.extract_feat = lambda points, img, img_metas: (None, [made.seen(points)])
    louder(made.pts_bbox_head)
    return made


def bevdet(files: old_mm.Files) -> Any:
    """The detector with its centre head, that suppresses scaled boxes."""
    from mmengine.config import ConfigDict

    rules = {
        **PLACE, "pc_range": RANGE[:2], "post_center_limit_range": LIMITS["post_center_range"],
        "score_threshold": 0.1, "nms_type": "rotate", "nms_thr": [0.2, 0.2, 0.2, 0.2, 0.2, 0.5],
        "pre_max_size": 1000, "post_max_size": 83,
        "nms_rescale_factor": [1.0, [0.7, 0.7], [0.4, 0.55], 1.1, [1.0, 1.0], [4.5, 9.0]],
    }  # fmt: skip
    head = centre_head([{"class_names": list(one)} for one in TASKS], RANGE[:2])
    made = files.find("BEVDet")(
        img_view_transformer=NOTHING, img_bev_encoder_backbone=NOTHING, img_bev_encoder_neck=NOTHING,
        img_backbone=NOTHING, pts_bbox_head=ConfigDict(head), test_cfg=ConfigDict(pts=rules),
    )  # fmt: skip
    made.img_view_transformer.grid_config = {
        f"{axis}bound": [low, high, 1.0] for axis, low, high in zip("xyz", RANGE[:3], RANGE[3:], strict=True)
    }
    made.extract_feat = lambda points, img, img_metas: ([made.seen(img)], None)
    louder(made.pts_bbox_head)
    return made


EDGE, CAMERAS, IMAGE, DIM = 57.6, 3, (64, 128), 8
"""Of BEVDet4D: 32 cells of the same size, which its encoder halves three times."""


def bevdet4d(files: old_mm.Files) -> Any:
    """The detector with its lifting (the route without its kernel), its shift in time, encoder, neck and head."""
    from mmengine.config import ConfigDict

    side = [-EDGE, EDGE, VOXEL * STRIDE]
    grid = {"xbound": side, "ybound": side, "zbound": [-10.0, 10.0, 20.0], "dbound": [1.0, 60.0, 1.0]}
    view = {
        "type": "ViewTransformerLiftSplatShoot", "grid_config": grid, "data_config": {"input_size": IMAGE},
        "numC_input": DEPTH, "numC_Trans": DIM, "downsample": 8, "use_bev_pool": False,
    }  # fmt: skip
    widths = [2 * DIM, 4 * DIM, 8 * DIM]
    before = {"num_layer": [1], "num_channels": [DIM], "stride": [1], "backbone_output_ids": [0]}
    rules = {
        **PLACE, "pc_range": [-EDGE] * 2, "post_center_limit_range": LIMITS["post_center_range"],
        "score_threshold": 0.1, "nms_type": ["rotate", "rotate", "rotate", "circle", "rotate", "rotate"],
        "nms_thr": [0.2, 0.2, 0.2, 0.2, 0.2, 0.5], "min_radius": [4, 12, 10, 1, 0.85, 0.175],
        "pre_max_size": 1000, "post_max_size": 83,
        "nms_rescale_factor": [1.0, [0.7, 0.7], [0.4, 0.55], 1.1, [1.0, 1.0], [4.5, 9.0]],
    }  # fmt: skip
    head = centre_head([{"class_names": list(one)} for one in TASKS], [-EDGE] * 2)
    made = files.find("BEVDetSequentialES")(
        aligned=True, before=True, img_view_transformer=view, img_backbone=NOTHING,
        img_bev_encoder_backbone={"type": "ResNetForBEVDet", "numC_input": 2 * DIM, "num_channels": widths},
        img_bev_encoder_neck={"type": "FPN_LSS", "in_channels": 10 * DIM, "out_channels": DEPTH},
        pre_process={"type": "ResNetForBEVDet", "numC_input": DIM, **before},
        pts_bbox_head=ConfigDict(head), test_cfg=ConfigDict(pts=rules),
    )  # fmt: skip
    made.img_backbone = nn.Conv2d(3, DEPTH, 8, stride=8)
    louder(made.pts_bbox_head)
    return counted(
        made, lambda index: made.pts_bbox_head(made.extract_feat(None, two_moments(index), None)[0])
    )


def counted(made: Any, call: Callable[[int], Any]) -> Any:
    """With statistics of the frames in its normalisations: without any the map is flat."""
    made.eval()
    for norm in [one for one in made.modules() if isinstance(one, nn.BatchNorm2d)]:
        norm.train().momentum = None
    with torch.no_grad():
        for index in range(FRAMES):
            call(index)
    return made


def two_moments(index: int) -> list[Any]:
    """What BEVDet4D sees of a frame: pictures of its cameras now and before, and how they stood."""
    some, count = torch.Generator().manual_seed(index), 2 * CAMERAS
    turns = torch.arange(count) % CAMERAS * 2 * np.pi / CAMERAS + (torch.arange(count) >= CAMERAS) * 0.05
    flat = torch.stack([turns.sin(), torch.zeros(count), turns.cos()], 1)
    right = torch.stack([turns.cos(), torch.zeros(count), -turns.sin()], 1)
    down = torch.tensor([0.0, 1, 0]).expand(count, 3)
    to_car = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]) @ torch.stack([right, down, flat], 2)
    places = torch.zeros(count, 3)
    places[CAMERAS:, 0] = -1.5
    intrinsics = torch.tensor([[60.0, 0, IMAGE[1] / 2], [0, 60, IMAGE[0] / 2], [0, 0, 1]]).expand(count, 3, 3)
    still = torch.eye(3).expand(count, 3, 3), torch.zeros(count, 3)
    pictures = torch.randn(count, 3, *IMAGE, generator=some)
    return [one[None].contiguous() for one in (pictures, to_car, places, intrinsics, *still)]


class Pictures(nn.Module):
    """In place of a backbone of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, DEPTH, 8, stride=8)

    def forward(self, pictures: Any) -> Any:
        return [self.conv(pictures)]


def one_moment(index: int) -> Any:
    """(1, cameras, 3, H, W) pictures of a frame."""
    return two_moments(index)[0][:, :CAMERAS].contiguous()


def projections() -> list[Any]:
    """(4, 4) from the LiDAR into each picture."""
    _, turn, _, inner, *_ = two_moments(0)
    made = np.tile(np.eye(4), (CAMERAS, 1, 1))
    made[:, :3, :3] = (inner[0, :CAMERAS] @ turn[0, :CAMERAS].transpose(1, 2)).numpy()
    return list(made)


def adlab(files: old_mm.Files) -> Any:
    """The detector with its lifting of pictures, its fusion and its TransFusion head."""
    from mmengine.config import ConfigDict

    pytest.importorskip("torchvision")
    head, rules = query_head()
    made = files.find("BEVF_TransFusion")(
        se=True, lc_fusion=True, camera_stream=True, grid=VOXEL * STRIDE, num_views=CAMERAS, final_dim=IMAGE,
        pc_range=RANGE, downsample=8, imc=DEPTH, lic=DEPTH,
        pts_bbox_head=ConfigDict(head, initialize_by_heatmap=True), test_cfg=ConfigDict(pts=rules),
    )  # fmt: skip
    made.img_backbone, made.seen = Pictures(), Seen()
    made.extract_pts_feat = lambda points, img_feats, img_metas: [made.seen(points)]
    louder(made.pts_bbox_head)
    meta = {"lidar2img": projections()}
    return counted(made, lambda index: made.extract_feat([batch_cloud(index)], one_moment(index), [meta]))


def mit(kind: str) -> Callable[[old_mm.Files], Any]:
    """Its model with one of its heads."""

    def made(files: old_mm.Files) -> Any:
        if kind == "transfusion":
            head, rules = query_head()
        else:
            head, rules = centre_head([list(one) for one in TASKS], RANGE), dict(PLACE)
            rules |= {"nms_type": "circle", "min_radius": [4, 12, 10, 1, 0.85, 0.175], "post_max_size": 83}
        one = {"backbone": NOTHING, "neck": NOTHING}
        parts = {"object": {**head, "test_cfg": rules}, "map": None}
        model = files.find("BEVFusion")(encoders={}, fuser=None, decoder=one, heads=parts)
        model.encoders["lidar"] = nn.ModuleDict({"backbone": Seen()})
        model.extract_features = lambda points, sensor: model.encoders[sensor]["backbone"](points)
        louder(model.heads["object"])
        return model

    return made


CORE = "mmdet3d.core.bbox."
COMMON = [
    *(f"{CORE}structures.{name}" for name in ("utils", "base_box3d", "lidar_box3d", "cam_box3d")),
    *(f"{CORE}{name}" for name in ("structures.depth_box3d", "structures.box_3d_mode")),
    f"{CORE}coders.centerpoint_bbox_coders",
    *(f"mmdet3d.{name}" for name in ("core.post_processing.box3d_nms", "models.builder")),
    *(f"mmdet3d.datasets.{name}" for name in ("custom_3d", "nuscenes_dataset")),
]
OLD = [
    *(f"mmdet3d.models.detectors.{name}" for name in ("base", "mvx_two_stage", "centerpoint")),
    *(f"mmdet3d.models.{name}" for name in ("utils.clip_sigmoid", "dense_heads.centerpoint_head")),
    f"{CORE}transforms",
]
QUERIES = [f"{CORE}coders.transfusion_bbox_coder"]


@dataclass
class Repository:
    """What a test takes of one.

    Attributes:
        name: owner/name.
        blobs: files and their `git hash-object` at the commit in docs/compatibility.md.
        files: modules that are its own.
        make: the model.
        inputs: the arguments that hold what the model sees, given the number of a frame and its points.
    """

    name: str
    blobs: dict[str, str]
    files: list[str]
    make: Callable[[old_mm.Files], Any]
    inputs: Callable[[int, Any], dict[str, Any]] = lambda _, cloud: {"points": [[cloud]]}


MIT = Repository(
    "mit-han-lab/bevfusion",
    {"mmdet3d/models/heads/bbox/transfusion.py": "4331e6ce42d82f80a7ec6c58298ca6e3d1985d1d"},
    [
        *COMMON, *QUERIES, "mmdet3d.models.utils.transformer", "mmdet3d.models.heads.bbox.transfusion",
        "mmdet3d.models.heads.bbox.centerpoint", "mmdet3d.models.fusion_models.base",
        "mmdet3d.models.fusion_models.bevfusion",
    ],
    mit("transfusion"),
)  # fmt: skip
REPOSITORIES = {
    "TransFusion": Repository(
        "XuyangBai/TransFusion",
        {"mmdet3d/models/dense_heads/transfusion_head.py": "759bb105dcbec68d4c56657c881dc63175d211ef"},
        [
            *COMMON, *OLD, *QUERIES, "mmdet3d.models.detectors.transfusion",
            "mmdet3d.models.dense_heads.transfusion_head",
        ],
        transfusion,
    ),
    "BEVDet": Repository(
        "HuangJunJie2017/BEVDet",
        {"mmdet3d/models/detectors/bevdet.py": "43b113724a43a4e69d88dc3b825d316c505c1533"},
        [*COMMON, *OLD, "mmdet3d.models.detectors.bevdet"],
        bevdet,
        lambda _, cloud: {"img_inputs": [[cloud]]},
    ),
    "BEVDet4D": Repository(
        "HuangJunJie2017/BEVDet",
        {
            "mmdet3d/models/detectors/bevdet.py": "43b113724a43a4e69d88dc3b825d316c505c1533",
            "mmdet3d/models/necks/view_transformer.py": "c647f9ae06d84951ac82f00b9c89356c20448d35",
        },
        [
            *COMMON, *OLD, "mmdet3d.models.detectors.bevdet", "mmdet3d.models.necks.view_transformer",
            "mmdet3d.models.necks.lss_fpn", "mmdet3d.models.backbones.resnet",
        ],
        bevdet4d,
        lambda index, _: {"img_inputs": [two_moments(index)]},
    ),
    "BEVFusion (ADLab)": Repository(
        "ADLab-AutoDrive/BEVFusion",
        {
            "mmdet3d/models/detectors/bevf_faster_rcnn.py": "8ce95890b51f91d23ac696d9fda7ce92efcb78bd",
            "mmdet3d/models/dense_heads/transfusion_head.py": "b6f0301165c39df8bb22b6f990d28054f4c413ea",
        },
        [
            *COMMON, *OLD, *QUERIES, "mmdet3d.models.detectors.bevf_transfusion",
            "mmdet3d.models.detectors.bevf_faster_rcnn", "mmdet3d.models.detectors.mvx_faster_rcnn",
            "mmdet3d.models.detectors.cam_stream_lss", "mmdet3d.models.dense_heads.transfusion_head",
        ],
        adlab,
        lambda index, cloud: {"points": [[cloud]], "img": [one_moment(index)]},
    ),
    "MIT BEVFusion, TransFusion head": MIT,
    "MIT BEVFusion, centre head": Repository(MIT.name, MIT.blobs, MIT.files, mit("center")),
}  # fmt: skip


def batch_cloud(index: int) -> Any:
    """The points of a frame."""
    return torch.rand(3000, 5, generator=torch.Generator().manual_seed(index)) * 100 - 50


def batch_of(repository: Repository, info: dict[str, Any], index: int, boxes: Any) -> dict[str, Any]:
    """What the model is called with for a frame."""
    cloud = batch_cloud(index)
    meta = {"box_type_3d": boxes, "sample_idx": info["token"], "token": info["token"]}
    if repository.name != MIT.name:
        meta["lidar2img"] = projections()
        seen = repository.inputs(index, cloud)
        return {"return_loss": False, "rescale": True, **seen, "img_metas": [[meta]]}
    empty = (
        *("camera2ego", "lidar2camera", "lidar2image", "camera_intrinsics", "camera2lidar"),
        *("img_aug_matrix", "lidar_aug_matrix", "depths"),
    )
    to_ego = torch.tensor(matrix_of(info, "lidar2ego"), dtype=torch.float32)[None]
    return {
        "img": torch.zeros(1), "points": [cloud], "lidar2ego": to_ego, "metas": [meta], **dict.fromkeys(empty)
    }  # fmt: skip


def put(info: dict[str, Any], rows: Any, names: list[str]) -> None:
    """True boxes (G, 9) into a frame's infos, as the converters of these repositories do."""
    info["gt_boxes"] = np.concatenate([rows[:, :6], -rows[:, 6:7] - np.pi / 2], axis=1)
    info["gt_velocity"], info["gt_names"] = rows[:, 7:], np.array(names)
    info["valid_flag"] = np.ones(len(rows), bool)


@pytest.mark.parametrize("name", REPOSITORIES)
def test_figures_are_those_of_its_own_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    repository = REPOSITORIES[name]
    root = old_mm.root_of(repository.name, repository.blobs)
    files = old_mm.Files({root: repository.files}, ("mmdet3d", "mmdet", "mmseg", "mmcv"))
    files.stand_ins["nms_gpu"] = suppressed
    files.stand_ins["BasicBlock"] = BasicBlock
    old_mm.on_path(monkeypatch, files)
    torch.manual_seed(0)
    model = repository.make(files)
    model.seen = getattr(model, "seen", None) or Seen()
    model.eval().CLASSES = NAMES
    infos = infos_of(FRAMES, beside=repository is MIT)
    data, kind = data_set(files, infos), files.find("LiDARInstance3DBoxes")
    batches = [batch_of(repository, info, index, kind) for index, info in enumerate(infos)]
    with torch.no_grad():
        answers = [model(**batch)[0] for batch in batches]
    found, true, rng = written(data, answers, tmp_path / "files"), {}, np.random.default_rng(0)
    for info in infos:
        rows, true[info["token"]] = true_boxes(info, found[info["token"]], rng)
        put(info, rows, [one["detection_name"] for one in true[info["token"]]])
    theirs = judged(infos, found, true)

    calls = []
    for info, batch in zip(infos, batches, strict=True):
        known = data.get_ann_info(infos.index(info))
        labels = [torch.tensor(known["gt_labels_3d"])]
        truth = {"gt_bboxes_3d": [known["gt_bboxes_3d"]], "gt_labels_3d": labels}
        calls.append((batch, truth, [info["token"]]))
    compared(name, model, calls, theirs)
    returned = [one.get("pts_bbox", one) for one in answers]
    rows = load("net", "v1", "detections", "val").to_pandas()
    expected = np.concatenate([one["scores_3d"].numpy() for one in returned])
    np.testing.assert_allclose(np.sort(rows["score"]), np.sort(expected), atol=1e-6)
    if name.startswith("BEVDet"):
        logits = np.stack(load("net", "v1", "vectors", "val").to_pandas()["logits"].to_numpy()).astype(float)
        own = 1 / (1 + np.exp(-logits[np.arange(len(rows)), rows["label"].to_numpy()]))
        np.testing.assert_allclose(own, rows["score"], atol=2e-3)  # stored in half precision
