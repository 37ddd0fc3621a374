"""CaDDN, which sees single pictures, on OpenPCDet's own KITTI data set: AP40 of a recorded run is its `evaluation`'s.

As `test_openpcdet_kitti.py`, with kornia (0.7, which has the grids that CaDDN asks for). Its network of depths is the
smaller of its two, pictures are half as large and cells coarser than in its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import DATA

torch = pytest.importorskip("torch")
for package in ("mmcv", "spconv", "easydict", "SharedArray", "skimage", "torchvision"):
    pytest.importorskip(package)
pytest.importorskip("kornia.utils.grid")
import pcdet_cpu as cpu  # noqa: E402
import test_openpcdet_kitti as kitti  # noqa: E402
from skimage import io  # noqa: E402

checkout, pytestmark = kitti.checkout, kitti.pytestmark
PICTURE = DATA / "nuscenes" / "n015-CAM_FRONT-1532402927612460.jpg"
FRAMES = 6
SIZE = tuple(one // 2 for one in kitti.SIZE)
DEPTH = {"VFE__FFN__DDN__ARGS": {"feat_extract_layer": "layer1"}, "VFE__FFN__DDN__BACKBONE_NAME": "ResNet50"}


def halved(root: Path) -> None:
    """Pictures, depths and calibrations of half the size; pictures are parts of a real one."""
    picture = io.imread(PICTURE)
    (root / "training" / "depth_2").mkdir()
    for index in range(FRAMES):
        name = f"{index:06d}"
        file = root / "training" / "calib" / f"{name}.txt"
        rows = dict(line.split(": ") for line in file.read_text().splitlines())
        to_camera = np.array(rows["Tr_velo_to_cam"].split(), float).reshape(3, 4)
        file.write_text(kitti.calibration_text(np.diag([0.5, 0.5, 1]) @ kitti.P2, to_camera))
        part = picture[300 + 20 * index :, 60 * index :][: SIZE[0], : SIZE[1]]
        io.imsave(root / "training" / "image_2" / f"{name}.png", part, check_contrast=False)
        depth = np.full(SIZE, 10 * 256, np.uint16)
        io.imsave(root / "training" / "depth_2" / f"{name}.png", depth, check_contrast=False)


@pytest.mark.usefixtures("checkout")
def test_ap40_of_single_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pcdet.datasets.kitti.kitti_dataset import KittiDataset
    from pcdet.models import build_network

    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")  # its loss asks, though none is computed
    kitti.write_kitti(tmp_path / "kitti")
    halved(tmp_path / "kitti")
    config = cpu.configured("cfgs/kitti_models/CaDDN.yaml", [0.4, 0.4, 0.4], **kitti.FEW, **DEPTH)
    config.DATA_CONFIG.POINT_CLOUD_RANGE = [2, -32, -3, 46.8, 32, 1]
    classes = list(config.CLASS_NAMES)
    data = KittiDataset(config.DATA_CONFIG, classes, training=False, root_path=tmp_path / "kitti")
    del data.kitti_infos[FRAMES:]
    for info in data.kitti_infos:
        info["image"]["image_shape"] = np.array(SIZE, np.int32)
    loader = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=data.collate_batch)
    torch.manual_seed(0)
    model: Any = build_network(config.MODEL, len(classes), data).eval()
    cpu.vary(model, 5)
    kitti.compared("CaDDN", model, loader, classes, np.random.default_rng(0))
