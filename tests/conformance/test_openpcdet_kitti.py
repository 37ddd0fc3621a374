"""OpenPCDet's own KITTI data set: AP40 of a recorded run is that of its `evaluation`.

The checkout lies in the folder that `MLD_CONFORMANCE` names, see `test_openpcdet.py`. The frame is the real one under
several names. A network with random weights finds nothing: either predictions are the true boxes moved about, or true
boxes are some of the predictions.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import DATA

torch = pytest.importorskip("torch")
for package in ("mmcv", "spconv", "easydict", "SharedArray", "skimage", "shapely"):
    pytest.importorskip(package)
import pcdet_cpu as cpu  # noqa: E402
import pcdet_pools as pools  # noqa: E402
from kitti_frames import BESIDE, camera_iou, with_neighbours  # noqa: E402
from skimage import io  # noqa: E402

from ml_debugger.evaluator import Evaluator  # noqa: E402
from ml_debugger.openpcdet import attach  # noqa: E402
from ml_debugger.records import load  # noqa: E402

CHECKOUTS = os.environ.get("MLD_CONFORMANCE")
FRAMES = 20
P2 = np.array([[721.5377, 0, 609.5593, 44.85728], [0, 721.5377, 172.854, 0.2163791], [0, 0, 1, 0.002745884]])
SIZE = (375, 1242)
DONT_CARE = (0.0, 150.0, 500.0, 375.0)

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
    ),
]


@pytest.fixture(scope="module")
def checkout():
    """OpenPCDet on the path; its own kernel of rotated overlaps needs a CUDA driver."""
    places = [Path(CHECKOUTS) / name for name in ("open-mmlab/OpenPCDet", "OpenPCDet")]
    root = next((place for place in places if (place / "pcdet").is_dir()), None)
    if root is None or not DATA.is_dir():
        pytest.skip(f"open-mmlab/OpenPCDet is not in {CHECKOUTS}, or no real frames are at {DATA}")
    with pytest.MonkeyPatch.context() as patch:
        cpu.on_path(root, patch)
        kernel = types.ModuleType("rotate_iou")
        kernel.rotate_iou_gpu_eval = camera_iou
        patch.setitem(sys.modules, "pcdet.datasets.kitti.kitti_object_eval_python.rotate_iou", kernel)
        yield root
    for name in [name for name in sys.modules if name.split(".")[0] == "pcdet"]:
        del sys.modules[name]


def annotated(frame: dict[str, Any], calib: Any) -> dict[str, np.ndarray]:
    """As `KittiDataset.get_infos` has it, with what KITTI ignores and a region without labels."""
    from pcdet.utils import box_utils

    to_camera = np.linalg.inv(np.vstack([P2, [0, 0, 0, 1]])) @ np.array(frame["lidar2img"])
    things = with_neighbours(frame["objects"], to_camera, P2)
    rows = np.array([one["box_3d"][:7] for one in things], np.float32)
    camera = box_utils.boxes3d_lidar_to_kitti_camera(rows[:, [0, 1, 2, 4, 3, 5, 6]].copy(), calib)
    pad = len(things), -1
    return {
        "name": np.array([*[one["label"] for one in things], "DontCare"]),
        "truncated": np.array([*[one["truncated"] for one in things], pad[1]], float),
        "occluded": np.array([*[one["occluded"] for one in things], pad[1]], float),
        "difficulty": np.array([*[one["difficulty"] for one in things], pad[1]], np.int32),
        "bbox": np.array([*[one["bbox_2d"] for one in things], DONT_CARE], np.float32),
        "alpha": np.array([*(camera[:, 6] - np.arctan2(camera[:, 0], camera[:, 2])), -10]),
        "dimensions": np.concatenate([camera[:, 3:6], [[-1, -1, -1]]]),
        "location": np.concatenate([camera[:, :3], [[-1000, -1000, -1000]]]),
        "rotation_y": np.array([*camera[:, 6], -10]),
        "score": np.full(len(things) + 1, -1.0),
    }


def calibration_text(project: Any, to_camera: Any) -> str:
    """KITTI's file of a projection (3, 4), the LiDAR's way to the camera (4, 4), and no turn between cameras."""
    lines = {**{f"P{k}": project for k in range(4)}, "R0_rect": np.eye(3), "Tr_velo_to_cam": to_camera[:3]}
    return "\n".join(
        f"{key}: " + " ".join(f"{v:.12e}" for v in value.ravel()) for key, value in lines.items()
    )


def write_kitti(root: Path) -> None:
    """The files that `KittiDataset` reads."""
    from pcdet.utils import calibration_kitti

    frame = json.loads((DATA / "kitti" / "000008.json").read_text())
    to_camera = np.linalg.inv(np.vstack([P2, [0, 0, 0, 1]])) @ np.array(frame["lidar2img"])
    for folder in ("ImageSets", "training/velodyne", "training/image_2", "training/calib"):
        (root / folder).mkdir(parents=True)
    names = [f"{index:06d}" for index in range(FRAMES)]
    (root / "ImageSets" / "val.txt").write_text("\n".join(names))
    text = calibration_text(P2, to_camera)
    for name in names:
        (root / "training/calib" / f"{name}.txt").write_text(text)
        (root / "training/velodyne" / f"{name}.bin").symlink_to(DATA / "kitti" / frame["points"])
        io.imsave(
            root / "training/image_2" / f"{name}.png", np.zeros((*SIZE, 3), np.uint8), check_contrast=False
        )
    annos = annotated(frame, calibration_kitti.Calibration(root / "training/calib" / f"{names[0]}.txt"))
    infos = [
        {
            "point_cloud": {"num_features": 4, "lidar_idx": name},
            "image": {"image_idx": name, "image_shape": np.array(SIZE, np.int32)},
            "annos": annos,
        }
        for name in names
    ]
    with (root / "kitti_infos_val.pkl").open("wb") as file:
        pickle.dump(infos, file)


def about(boxes: torch.Tensor, rng: Any, classes: list[str]) -> dict[str, torch.Tensor]:
    """In place of the head's: the true boxes moved about, and false ones.

    Vans are found as cars, sitting persons as pedestrians, whether or not they are classes of the run.
    """
    beside = torch.tensor([*BESIDE["Van"], *BESIDE["Person_sitting"]])[:, [0, 1, 2, 4, 3, 5, 6]]
    own = boxes[(boxes[:, -1] > 0) & (boxes[:, -1] <= 3)]
    true = torch.cat([own[:, :7], beside])
    labels = torch.cat([own[:, -1].long(), torch.tensor([1, 1, 2, 2]), torch.ones(4, dtype=torch.long)])
    if "Van" in classes:
        labels[len(own) : len(own) + 1 + int(rng.random() < 0.5)] = classes.index("Van") + 1
    moved = true + torch.tensor(rng.normal(0, 1, true.shape) * [0.2, 0.1, 0.05, 0.05, 0.1, 0.05, 0.05])
    false = true[rng.integers(0, len(true), 4)].clone()
    false[:, :2] += torch.tensor(rng.uniform(-12, 12, (4, 2)))
    closeness = 1 - (moved[:, :2] - true[:, :2]).norm(dim=1)
    scores = torch.cat([closeness, torch.tensor(rng.random(4))]).clamp(0.05, 0.99)
    rows = torch.cat([moved, false]).float()
    return {
        "pred_boxes": rows,
        "pred_scores": scores.float(),
        "pred_labels": labels,
    }


@pytest.mark.parametrize("more", [[], ["Van", "Person_sitting"]])
def test_ap40_is_its_own(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """`more`: what KITTI ignores beside cars and pedestrians, as classes of the run."""
    from pcdet.datasets.kitti.kitti_dataset import KittiDataset
    from pcdet.models import build_network, load_data_to_gpu

    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    write_kitti(tmp_path / "kitti")
    config = cpu.configured("cfgs/kitti_models/pointpillar.yaml", [0.32, 0.32, 4.0])
    classes = [*config.CLASS_NAMES, *more]
    data = KittiDataset(config.DATA_CONFIG, classes, training=False, root_path=tmp_path / "kitti")
    loader = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=data.collate_batch)
    model = build_network(config.MODEL, len(classes), data).eval()
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        model,
        "post_processing",
        lambda batch: ([about(rows, rng, classes) for rows in batch["gt_boxes"]], {}),
    )
    model.module_list = []  # what they would compute is not looked at
    recording = attach(model, None, loader, "pcdet", "v1")
    answers: list[Any] = []
    for batch in loader:
        load_data_to_gpu(batch)
        with torch.no_grad():
            found, _ = model(batch)
        answers += data.generate_prediction_dicts(batch, found, classes)
    recording.finish()
    _, theirs = data.evaluation(answers, classes)

    truths = load("pcdet", "v1", "truths", "val").to_pandas()
    assert len(set(truths["difficulty"].dropna())) > 1
    assert truths[["difficulty", "occlusion", "truncation", "image_box"]].notna().all().all()
    result = Evaluator("pcdet", "v1").request_evaluation(n_epoch=None)
    assert not [one["message"] for one in result.problems if "is no class of this run" in one["message"]]
    ours = result.metrics_summary(full=True).iloc[0]
    assert 0.1 < ours["ap40_3d_moderate"] < 0.95
    known = ["Car", "Pedestrian", *more]  # those of them that have true boxes
    for kind in ("3d", "bev", "image"):
        for level in ("easy", "moderate", "hard"):
            expected = np.mean([theirs[f"{name}_{kind}/{level}_R40"] for name in known]) / 100
            print(kind, level, expected, ours[f"ap40_{kind}_{level}"])
            assert ours[f"ap40_{kind}_{level}"] == pytest.approx(expected, abs=1e-6), (kind, level)
    for level in ("easy", "moderate", "hard"):
        expected = np.mean([theirs[f"{name}_aos/{level}_R40"] for name in known]) / 100
        assert ours[f"aos40_{level}"] == pytest.approx(expected, abs=1e-6), level


MODELS = {
    "second": [0.2, 0.2, 0.1],
    "second_iou": [0.2, 0.2, 0.1],
    "second_multihead": [0.2, 0.2, 0.1],
    "pointpillar": [0.32, 0.32, 4.0],
    "voxel_rcnn_car": [0.2, 0.2, 0.1],
    "PartA2": [0.2, 0.2, 0.1],
    "pv_rcnn": [0.2, 0.2, 0.1],
    "pointrcnn": [0.2, 0.2, 0.1],
    "centerpoint": [0.2, 0.2, 0.1],
    "voxelnext_ioubranch_large": [0.2, 0.2, 0.1],
    "transfusion_lidar": [0.2, 0.2, 0.1],
}
"""KITTI's configurations -> voxels in metres: one head, two stages, several heads, many equal scores, one class."""

BORROWED = {
    "centerpoint": "waymo_models",
    "voxelnext_ioubranch_large": "waymo_models",
    "transfusion_lidar": "nuscenes_models",
}
"""Those that have none for KITTI: the model of another's, on SECOND's data."""

SMALLER = {
    "PartA2": {"ROI_HEAD__ROI_AWARE_POOL__POOL_SIZE": 4},
    "pointrcnn": {"ROI_HEAD__NMS_CONFIG__TEST__NMS_PRE_MAXSIZE": 500},
}
FEW = {"POST_PROCESSING__NMS_CONFIG__NMS_PRE_MAXSIZE": 300}


def walked(model: Any, loader: Any, classes: list[str]) -> list[dict[str, Any]]:
    """As `eval_one_epoch` walks: predictions as the data set writes them."""
    from pcdet.models import load_data_to_gpu

    answers: list[Any] = []
    for batch in loader:
        load_data_to_gpu(batch)
        with torch.no_grad():
            found, _ = model(batch)
        answers += loader.dataset.generate_prediction_dicts(batch, found, classes)
    return answers


def some_of(answer: dict[str, Any], rng: Any, classes: list[str]) -> dict[str, np.ndarray]:
    """True boxes of a frame: some of its predictions, moved about and of a class that is now and then another."""
    height = answer["bbox"][:, 3] - answer["bbox"][:, 1]
    rows = np.flatnonzero(height > 45)
    rows = rows[np.argsort(-answer["score"][rows], kind="stable")][:24:2]
    size = answer["dimensions"][rows]
    other = rng.random(len(rows)) < 0.2
    return {
        "name": np.where(other, classes[0], answer["name"][rows]),
        "truncated": np.zeros(len(rows)),
        "occluded": np.zeros(len(rows)),
        "difficulty": np.zeros(len(rows), np.int32),
        "bbox": answer["bbox"][rows],
        "alpha": answer["alpha"][rows],
        "dimensions": size,
        "location": answer["location"][rows] + rng.normal(0, 0.09, size.shape) * size[:, [2, 1, 0]],
        "rotation_y": answer["rotation_y"][rows],
        "score": np.full(len(rows), -1.0),
    }


def compared(name: str, model: Any, loader: Any, classes: list[str], rng: Any) -> None:
    """AP40 of a recorded walk is that of its `evaluation`; true boxes are some of what the model found before."""
    data = loader.dataset
    np.random.seed(0)  # noqa: NPY002 - its data set draws a frame's points from that
    norms = [one for one in model.modules() if isinstance(one, torch.nn.modules.batchnorm._BatchNorm)]
    for one in norms:  # statistics of these frames: with random weights and none nothing gets to the head
        one.train().momentum = None
    walked(model, loader, classes)
    model.eval()
    for info, answer in zip(data.kitti_infos, walked(model, loader, classes), strict=True):
        info["annos"] = some_of(answer, rng, classes)
    recording = attach(model, None, loader, "pcdet", "v1")
    answers = walked(model, loader, classes)
    recording.finish()
    _, theirs = data.evaluation(answers, classes)
    scores = np.sort(load("pcdet", "v1", "detections", "val").to_pandas()["score"])
    np.testing.assert_allclose(scores, np.sort(np.concatenate([one["score"] for one in answers])), atol=1e-6)
    result = Evaluator("pcdet", "v1").request_evaluation(n_epoch=None)
    ours = result.metrics_summary(full=True).iloc[0]
    known = sorted({str(one) for info in data.kitti_infos for one in info["annos"]["name"]})
    for kind in ("3d", "bev", "image"):
        expected = np.mean([theirs[f"{one}_{kind}/moderate_R40"] for one in known]) / 100
        print(f"| {name} | {kind} | {known} | {expected:.4f} | {ours[f'ap40_{kind}_moderate']:.4f} |")
        assert expected > 0.02
        assert ours[f"ap40_{kind}_moderate"] == pytest.approx(expected, abs=1e-6), kind


@pytest.mark.parametrize("name", MODELS)
def test_ap40_of_its_own_models(
    name: str, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pcdet.datasets.kitti.kitti_dataset import KittiDataset
    from pcdet.models import build_network

    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    write_kitti(tmp_path / "kitti")
    own = "second" if name in BORROWED else name
    few = FEW | SMALLER.get(name, {})
    config = cpu.configured(f"cfgs/kitti_models/{own}.yaml", MODELS[name], **few)
    if name in BORROWED:
        cpu.borrowed(config, f"cfgs/{BORROWED[name]}/{name}.yaml")
    classes = list(config.CLASS_NAMES)
    data = KittiDataset(config.DATA_CONFIG, classes, training=False, root_path=tmp_path / "kitti")
    del data.kitti_infos[8:]
    rng = np.random.default_rng(0)
    for info in data.kitti_infos:  # each frame has some of the points, so that predictions differ
        file = tmp_path / "kitti" / "training/velodyne" / f"{info['point_cloud']['lidar_idx']}.bin"
        points = np.fromfile(file, np.float32).reshape(-1, 4)
        file.unlink()
        points[rng.random(len(points)) < 0.7].tofile(file)
    loader = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=data.collate_batch)
    torch.manual_seed(0)
    model = build_network(config.MODEL, len(classes), data).eval()
    pools.replace(model, monkeypatch)
    cpu.vary(model, 5)  # more, and scores of 1 are many
    compared(name, model, loader, classes, rng)
