"""BEVFormer and StreamPETR: what is recorded has the mAP of the file they write for the devkit.

Detector, head and coder are the repository's own, boxes and data set those of the MMDetection3D that it asks for; all lie
in the folder that `MLD_CONFORMANCE` names. Backbone and transformer, whose attention needs CUDA, are the test's; both
models carry something on from frame to frame. True boxes are some of the predictions, moved about.
"""

from __future__ import annotations

import types
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
from mmdet.models.layers import inverse_sigmoid  # noqa: E402
from nuscenes_figures import NAMES, compared, data_set, infos_of, judged, true_boxes, written  # noqa: E402
from torch import nn  # noqa: E402

from mld_core.adapters.registry import find_adapter  # noqa: E402

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not old_mm.CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
    ),
]

FRAMES, LAYERS, WIDTH, QUERIES, CAMERAS, SIZE = 6, 2, 256, 80, 2, 4
RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
CODER = {
    "type": "NMSFreeCoder", "pc_range": RANGE, "post_center_range": [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
    "max_num": 100, "num_classes": 10, "voxel_size": [0.2, 0.2, 8],
}  # fmt: skip


class Pictures(nn.Module):
    """In place of a backbone: (N, 3, H, W) to one map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 1)

    def forward(self, pictures: Any) -> Any:
        return [self.conv(nn.functional.adaptive_avg_pool2d(pictures, SIZE)) * 5]


class BevTransformer(nn.Module):
    """In place of BEVFormer's: what it says depends on the pictures and on the frame before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dims, self.decoder = WIDTH, types.SimpleNamespace(num_layers=LAYERS)
        self.place = nn.Linear(WIDTH, 3)

    def forward(self, feats: Any, bev: Any, queries: Any, *_: Any, prev_bev: Any = None, **__: Any) -> Any:
        seen = feats[0].mean(dim=(1, 3, 4))  # (B, C)
        bev = bev[:, None] + seen[None]
        bev = bev if prev_bev is None else bev + 0.5 * prev_bev
        position, content = queries.split(WIDTH, dim=1)
        hs = (content[:, None] + bev.mean(dim=0)).expand(LAYERS, -1, -1, -1)
        reference = (self.place(position) * 3).sigmoid()[None]
        return bev, hs, reference, reference.expand(LAYERS, -1, -1, -1)


class DetrHead(nn.Module):
    """MMDetection 2's, as far as BEVFormer's asks it."""

    def __init__(
        self, num_classes: int, in_channels: int, num_query: int, transformer: Any, **_: Any
    ) -> None:
        super().__init__()
        self.num_classes = self.cls_out_channels = num_classes
        self.in_channels, self.num_query, self.num_reg_fcs = in_channels, num_query, 2
        self.embed_dims, self.transformer = WIDTH, BevTransformer()
        self.positional_encoding = lambda mask: mask
        self.loss_cls = types.SimpleNamespace(use_sigmoid=True)
        self._init_layers()


class PetrTransformer(nn.Module):
    """In place of StreamPETR's."""

    def forward(self, memory: Any, tgt: Any, place: Any, _: Any, __: Any, before: Any, ___: Any) -> Any:
        seen = memory.mean(dim=1, keepdim=True) + 0.5 * before.mean(dim=1, keepdim=True)
        return (tgt + place * 0.3 + seen).expand(6, -1, -1, -1), None

    def init_weights(self) -> None:
        """Random as they are."""


class PlainHead(nn.Module):
    """MMDetection 2's `AnchorFreeHead`, of which StreamPETR's uses nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


def bevformer(files: old_mm.Files) -> Any:
    from mmengine.config import ConfigDict

    head = ConfigDict(
        type="BEVFormerHead", num_classes=10, in_channels=WIDTH, num_query=QUERIES, transformer={}, bbox_coder=CODER,
        bev_h=5, bev_w=5,
    )  # fmt: skip
    made = files.find("BEVFormer")(img_backbone={"type": "none"}, pts_bbox_head=head, video_test_mode=True)
    made.img_backbone = Pictures()
    made.pts_bbox_head.cls_branches[-1][-1].weight.data.mul_(4)
    return made


def streampetr(files: old_mm.Files) -> Any:
    from mmengine.config import ConfigDict

    head = ConfigDict(
        type="StreamPETRHead", num_classes=10, in_channels=WIDTH, num_query=QUERIES, memory_len=64, topk_proposals=16,
        num_propagated=16, transformer={}, bbox_coder=CODER, loss_cls={"type": "none"}, train_cfg=None, LID=True,
    )  # fmt: skip
    made = files.find("Petr3D")(img_backbone={"type": "none"}, pts_bbox_head=head)
    made.img_backbone = Pictures()
    made.pts_bbox_head.init_weights()
    last = made.pts_bbox_head.cls_branches[-1][-1]
    last.weight.data.mul_(4)
    last.bias.data.zero_()
    return made


def frame_of(info: dict[str, Any], index: int, boxes: Any, *, streams: bool) -> dict[str, Any]:
    """What the model is called with; the models write into it."""
    generator = torch.Generator().manual_seed(index)
    pictures = torch.randn(1, CAMERAS, 3, 16 * SIZE, 16 * SIZE, generator=generator)
    pictures += torch.randn(1, 1, 3, 1, 1, generator=generator)
    meta = {
        "box_type_3d": boxes, "sample_idx": info["token"], "scene_token": "s",
        "can_bus": np.arange(18.0) + index, "pad_shape": [(16 * SIZE, 16 * SIZE, 3)] * CAMERAS,
    }  # fmt: skip
    batch = {"return_loss": False, "rescale": True, "img": [pictures], "img_metas": [[meta]]}
    if streams:
        pose = torch.eye(4)
        pose[0, 3] = float(index)
        many = torch.eye(4).repeat(CAMERAS, 1, 1)
        facts = {
            "lidar2img": many, "intrinsics": many * 500, "ego_pose": pose, "ego_pose_inv": pose.inverse(),
            "timestamp": torch.tensor(0.5 * index, dtype=torch.float64),
        }  # fmt: skip
        batch |= {name: [[value]] for name, value in facts.items()}
    return batch


def forgotten(model: Any) -> None:
    """As before the first frame."""
    if hasattr(model, "prev_frame_info"):
        model.prev_frame_info |= {"prev_bev": None, "scene_token": None, "prev_pos": 0, "prev_angle": 0}
    else:
        model.prev_scene_token = None


@dataclass
class Repository:
    """What a test takes of one.

    Attributes:
        name: owner/name.
        blobs: files and their `git hash-object` at the commit in docs/compatibility.md.
        files: modules that are its own.
        below: where MMDetection3D lies, and a file of it.
        make: the model.
        turned: whether its infos hold x, y, z, l, w, h, yaw, else w, l, h and a yaw of another sense.
    """

    name: str
    blobs: dict[str, str]
    files: list[str]
    below: tuple[str, dict[str, str]]
    make: Callable[[old_mm.Files], Any]
    turned: bool = False


PLUGIN = "projects.mmdet3d_plugin."
CORE = "mmdet3d.core.bbox."
MMDET3D = [
    *(f"{CORE}structures.{name}" for name in ("utils", "base_box3d", "lidar_box3d", "cam_box3d")),
    *(f"{CORE}{name}" for name in ("structures.depth_box3d", "structures.box_3d_mode", "transforms")),
    *(f"mmdet3d.models.{name}" for name in ("builder", "detectors.base", "detectors.mvx_two_stage")),
    *(f"mmdet3d.datasets.{name}" for name in ("custom_3d", "nuscenes_dataset")),
]
CODERS = [f"{PLUGIN}core.bbox.{name}" for name in ("util", "coders.nms_free_coder")]
REPOSITORIES = {
    "BEVFormer": Repository(
        "fundamentalvision/BEVFormer",
        {
            "projects/mmdet3d_plugin/bevformer/dense_heads/bevformer_head.py": "93c7cd73241bdb02c4bfda44f1d8ec1a20d5db2c"
        },
        [
            *CODERS, f"{PLUGIN}bevformer.dense_heads.bevformer_head", f"{PLUGIN}bevformer.detectors.bevformer",
            f"{PLUGIN}models.utils.grid_mask",
        ],
        ("HuangJunJie2017/BEVDet", {"mmdet3d/version.py": "84e7afffa56f61ef6c7c9083fa1249bb4309f0c5"}),
        bevformer,
    ),
    "StreamPETR": Repository(
        "exiawsh/StreamPETR",
        {
            "projects/mmdet3d_plugin/models/dense_heads/streampetr_head.py": "ed5a0edbdb824057f5083548cc740087644cc944"
        },
        [
            *CODERS, f"{PLUGIN}models.dense_heads.streampetr_head", f"{PLUGIN}models.detectors.petr3d",
            *(f"{PLUGIN}models.utils.{name}" for name in ("grid_mask", "misc", "positional_encoding")),
        ],
        ("open-mmlab/mmdet3d-1.0.0rc6", {"mmdet3d/version.py": "89fdcd45c34d502cc4151b6e7e9899ef8c1868f9"}),
        streampetr,
        turned=True,
    ),
}  # fmt: skip


def put(info: dict[str, Any], rows: Any, names: list[str], *, turned: bool) -> None:
    """True boxes (G, 9) into a frame's infos, as the converter of that MMDetection3D does."""
    old = np.concatenate([rows[:, :6], -rows[:, 6:7] - np.pi / 2], axis=1)
    info["gt_boxes"] = rows[:, [0, 1, 2, 4, 3, 5, 6]] if turned else old
    info["gt_velocity"], info["gt_names"] = rows[:, 7:], np.array(names)
    info["valid_flag"] = np.ones(len(rows), bool)


@pytest.mark.parametrize("name", REPOSITORIES)
def test_figures_are_those_of_its_own_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    repository = REPOSITORIES[name]
    root, below = old_mm.root_of(repository.name, repository.blobs), old_mm.root_of(*repository.below)
    files = old_mm.Files(
        {root: repository.files, below: MMDET3D}, ("mmdet3d", "mmdet", "mmseg", "mmcv", "projects")
    )
    files.stand_ins |= {
        "DETRHead": DetrHead, "AnchorFreeHead": PlainHead, "build_transformer": lambda _: PetrTransformer(),
        "inverse_sigmoid": inverse_sigmoid,
    }  # fmt: skip
    old_mm.on_path(monkeypatch, files)
    torch.manual_seed(0)
    model = repository.make(files).eval()
    model.CLASSES = NAMES
    assert find_adapter(model).family == "BEVFormer"
    infos = infos_of(FRAMES)
    data, kind = data_set(files, infos), files.find("LiDARInstance3DBoxes")

    def batches() -> list[dict[str, Any]]:
        forgotten(model)
        return [frame_of(info, n, kind, streams=name == "StreamPETR") for n, info in enumerate(infos)]

    with torch.no_grad():
        answers = [model(**batch)[0] for batch in batches()]
    found, true, rng = written(data, answers, tmp_path / "files"), {}, np.random.default_rng(0)
    for info in infos:
        rows, true[info["token"]] = true_boxes(info, found[info["token"]], rng)
        put(info, rows, [one["detection_name"] for one in true[info["token"]]], turned=repository.turned)
    calls = []
    for index, batch in enumerate(batches()):
        known = data.get_ann_info(index)
        labels = [torch.tensor(known["gt_labels_3d"])]
        truth = {"gt_bboxes_3d": [known["gt_bboxes_3d"]], "gt_labels_3d": labels}
        calls.append((batch, truth, [infos[index]["token"]]))
    compared(name, model, calls, judged(infos, found, true))
