"""OpenPCDet's own models, configured by its own files, on a CPU: what is recorded is what they return, row by row.

The checkout lies in the folder that `MLD_CONFORMANCE` names (`open-mmlab/OpenPCDet` or `OpenPCDet`); the packages are
those of `.ci/mmdet3d-env` with spconv, easydict, SharedArray and torchvision. Voxels are coarser than in the files, and
weights random; the layers that make class logits are scaled so that scores differ.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import pcdet_cpu as cpu  # noqa: E402
import pcdet_pools as pools  # noqa: E402

from ml_debugger.openpcdet import attach  # noqa: E402
from ml_debugger.records import load  # noqa: E402
from mld_core.adapters.registry import find_adapter  # noqa: E402

CHECKOUTS = os.environ.get("MLD_CONFORMANCE")
BLOB = "91e44bd46dc05c048bf89999d40bcedb63157e08"
"""`git hash-object pcdet/models/detectors/detector3d_template.py` at commit 8cacccec11db."""

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
    ),
]


@dataclass
class Case:
    """A configuration.

    Attributes:
        path: Its file, under `tools/cfgs`.
        voxel: Metres.
        kind: The reader of heads that has to be chosen; none of a model whose first stage is of points: no logits.
        family: The family.
        changes: Dotted names under MODEL -> values.
        most: Boxes a frame that the model returns, where that is more than our own limit, 300.
        score: What a class's logit gives: the score itself ("own"), that or more ("factor": the score has another
            factor below 1), what the model tells of the first stage ("first"), or nothing that it tells ("").
    """

    path: str
    voxel: list[float]
    kind: str
    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    most: int | None = None
    score: str = "own"


FEW = {"POST_PROCESSING__NMS_CONFIG__NMS_PRE_MAXSIZE": 300}
SMALL = {"ROI_HEAD__ROI_AWARE_POOL__POOL_SIZE": 4}
IN_HEAD = {"DENSE_HEAD__POST_PROCESSING__NMS_CONFIG__NMS_PRE_MAXSIZE": 300}
PICTURES = {
    "IMAGE_BACKBONE__EMBED_DIMS": 24, "IMAGE_BACKBONE__DEPTHS": [1, 1, 1, 1], "IMAGE_BACKBONE__INIT_CFG": None,
    "IMAGE_BACKBONE__NUM_HEADS": [1, 2, 4, 8], "NECK__IN_CHANNELS": [48, 96, 192], "NECK__OUT_CHANNELS": 32,
    "VTRANSFORM__IMAGE_SIZE": [64, 192], "VTRANSFORM__FEATURE_SIZE": [8, 24], "VTRANSFORM__IN_CHANNEL": 32,
    "VTRANSFORM__OUT_CHANNEL": 16, "VTRANSFORM__XBOUND": [-54.0, 54.0, 1.08],
    "VTRANSFORM__YBOUND": [-54.0, 54.0, 1.08], "FUSER__IN_CHANNEL": 272,
}  # fmt: skip
"""A smaller encoder of smaller pictures, whose map is as large as that of the points."""

CASES = {
    "PointPillar, six heads, classes one by one": Case(
        "nuscenes_models/cbgs_pp_multihead.yaml", [0.8, 0.8, 8.0], "anchor_pcdet", "PointPillars", FEW, 500
    ),
    "SECOND, three heads, classes one by one": Case(
        "kitti_models/second_multihead.yaml", [0.2, 0.2, 0.1], "anchor_pcdet", "Detector3D", FEW, 301
    ),
    "PointPillar": Case(
        "kitti_models/pointpillar.yaml", [0.32, 0.32, 4.0], "anchor_pcdet", "PointPillars", FEW
    ),
    "SECOND": Case("kitti_models/second.yaml", [0.2, 0.2, 0.1], "anchor_pcdet", "Detector3D", FEW),
    "CenterPoint": Case(
        "nuscenes_models/cbgs_voxel01_res3d_centerpoint.yaml", [0.4, 0.4, 0.2], "center_pcdet", "CenterPoint", IN_HEAD
    ),
    "VoxelNeXt": Case(
        "nuscenes_models/cbgs_voxel0075_voxelnext.yaml", [0.3, 0.3, 0.2], "center_sparse", "CenterPoint", IN_HEAD
    ),
    "TransFusion": Case(
        "nuscenes_models/transfusion_lidar.yaml", [0.27, 0.27, 0.2], "transfusion_pcdet", "CenterPoint", score="factor"
    ),
    "BEVFusion, its pooling of pictures made here": Case(
        "nuscenes_models/bevfusion.yaml", [0.27, 0.27, 0.2], "transfusion_pcdet", "BEVFusion", PICTURES, score="factor"
    ),
    "SECOND-IoU, two stages": Case(
        "kitti_models/second_iou.yaml", [0.2, 0.2, 0.1], "roi", "CenterPoint", FEW, score="first"
    ),
    "Voxel R-CNN, its pooling made here": Case(
        "kitti_models/voxel_rcnn_car.yaml", [0.2, 0.2, 0.1], "roi", "CenterPoint", FEW, score=""
    ),
    "Part-A2, its pooling made here": Case(
        "kitti_models/PartA2.yaml", [0.2, 0.2, 0.1], "roi", "CenterPoint", {**FEW, **SMALL}, score=""
    ),
    "PV-RCNN, its points and its pooling made here": Case(
        "kitti_models/pv_rcnn.yaml", [0.2, 0.2, 0.1], "roi", "CenterPoint", FEW, score=""
    ),
    "PointRCNN, its points and its pooling made here": Case(
        "kitti_models/pointrcnn.yaml", [0.2, 0.2, 0.1], "", "Detector3D", FEW, score=""
    ),
}  # fmt: skip


RETURNED = ("pred_boxes", "pred_scores", "pred_labels", "pred_cls_scores")


@pytest.fixture(scope="module")
def checkout():
    """OpenPCDet on the path."""
    for package in ("mmcv", "spconv", "easydict", "SharedArray", "skimage"):
        pytest.importorskip(package)
    places = [Path(CHECKOUTS) / name for name in ("open-mmlab/OpenPCDet", "OpenPCDet")]
    root = next((place for place in places if (place / "pcdet").is_dir()), None)
    if root is None:
        pytest.skip(f"open-mmlab/OpenPCDet is not in {CHECKOUTS}")
    body = (root / "pcdet/models/detectors/detector3d_template.py").read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    assert digest == BLOB, f"{root} is not at commit 8cacccec11db"
    with pytest.MonkeyPatch.context() as patch:
        cpu.on_path(root, patch)
        yield root
    for name in [name for name in sys.modules if name.split(".")[0] == "pcdet"]:
        del sys.modules[name]
    gc.collect()


def made(case: Case) -> tuple[Any, Any]:
    """The model and a loader of three frames."""
    from pcdet.models import build_network

    config = cpu.configured(f"cfgs/{case.path}", case.voxel, **case.changes)
    loader = cpu.frames_of(config, 3)
    torch.manual_seed(0)
    model = build_network(config.MODEL, len(config.CLASS_NAMES), loader.dataset).eval()
    cpu.vary(model)
    return model, loader


def evaluated(model: Any, loader: Any) -> dict[str, dict[str, np.ndarray]]:
    """As `eval_one_epoch` walks: what the model returned for each frame."""
    from pcdet.models import load_data_to_gpu

    found = {}
    for batch in loader:
        load_data_to_gpu(batch)
        with torch.no_grad():
            answers, recall = model(batch)
        assert recall["gt"] > 0
        for name, answer in zip(batch["frame_id"], answers, strict=True):
            found[str(name)] = {key: answer[key].numpy() for key in RETURNED if key in answer}
    return found


def ordered(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows in an order of their own."""
    return np.lexsort((boxes[:, 1], boxes[:, 0], -scores, labels))


@pytest.mark.parametrize("name", CASES)
def test_rows_are_what_the_model_returns(name, checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    case = CASES[name]
    model, loader = made(case)
    pools.replace(model, monkeypatch)
    identity = find_adapter(model).identity
    kind = "" if identity.head is None else identity.head.kind
    assert (kind, find_adapter(model).family) == (case.kind, case.family)
    recording = attach(model, None, loader, "pcdet", "v1")
    answers = evaluated(model, loader)
    recording.finish()
    rows = load("pcdet", "v1", "detections", "val").to_pandas()
    vectors = load("pcdet", "v1", "vectors", "val").to_pandas() if case.kind else None
    truths = load("pcdet", "v1", "truths", "val").to_pandas()
    assert set(rows["input_id"]) == set(answers) == {f"{k:06d}" for k in range(3)}
    assert set(truths["input_id"]) == set(answers)
    for frame, answer in answers.items():
        mine = rows[rows["input_id"] == frame]
        assert len(mine) == len(answer["pred_boxes"]), frame
        if case.most is not None:
            assert len(mine) >= case.most, "the case is about frames of more boxes than our own limit"
        x, y, z, length, width, height, yaw = answer["pred_boxes"][:, :7].T
        expected = np.stack([x, y, z, width, length, height, yaw], axis=1)
        said = np.stack(mine["box"].to_numpy()).astype(np.float64)
        score, label = mine["score"].to_numpy(), mine["label"].to_numpy()
        a = ordered(said, score, label)
        b = ordered(expected, answer["pred_scores"], answer["pred_labels"] - 1)
        np.testing.assert_array_equal(label[a], answer["pred_labels"][b] - 1)
        np.testing.assert_allclose(score[a], answer["pred_scores"][b], atol=1e-6)
        np.testing.assert_allclose(said[a, :6], expected[b, :6], atol=1e-4)
        turned = said[a, 6] - expected[b, 6]
        np.testing.assert_allclose(np.sin(turned), 0, atol=1e-4)
        np.testing.assert_allclose(np.cos(turned), 1, atol=1e-4)
        if vectors is None:
            continue
        logits = np.stack(vectors[vectors["input_id"] == frame]["logits"].to_numpy())
        own = 1 / (1 + np.exp(-logits[np.arange(len(label)), label].astype(np.float64)))
        assert np.isfinite(logits).all()
        if case.score == "own":
            np.testing.assert_allclose(own, score, atol=2e-3)  # stored in half precision
        elif case.score == "factor":
            assert (own >= score - 2e-3).all()
        elif case.score == "first":
            np.testing.assert_allclose(own[a], answer["pred_cls_scores"][b], atol=2e-3)
