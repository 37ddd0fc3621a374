"""Two ranks (gloo) train and validate PointPillars; the records are those of one rank, each frame once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from folders import DATA, TRAININGS

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")

import mmdet3d_parts as parts

from ml_debugger.records import load
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select


@pytest.mark.processes
def test_two_ranks_share_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not DATA.is_dir():
        pytest.skip(f"no real LiDAR frames at {DATA}; set MLD_TEST_DATA to their folder")
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    boxes = parts.write_dataset(tmp_path / "data", frames=3)  # one of the ranks gets a frame twice
    script = str(TRAININGS / "mmdet3d_script.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, script, str(tmp_path / "data"), str(tmp_path / "work")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    passes = select(Store(tmp_path / "store"), RunKey("VoxelNet", "v1"), n_epoch=None, passes="all")
    assert sorted((p.key.dataset_type, p.sealed, p.missing_ranks) for p in passes) == [
        ("train", True, []),
        ("val", True, []),
    ]
    for split in ("train", "val"):
        samples = load("VoxelNet", "v1", "samples", split).to_pandas()
        assert sorted(Path(name).name for name in samples.input_id) == [f"{i:06d}.bin" for i in range(3)]
        assert set(samples.rank_) == {0, 1}
        assert samples.n_truths.tolist() == [len(boxes)] * 3
        detections = load("VoxelNet", "v1", "detections", split)
        assert detections.num_rows == samples.n_detections.sum() > 0
