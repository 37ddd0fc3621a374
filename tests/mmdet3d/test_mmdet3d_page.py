"""Five minutes with MMDetection3D: the page's config, made small, trains and prints what the page says it prints.

Runs in .venv-mmdet3d (`.ci/mmdet3d-env` builds it) and is skipped elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import DATA

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")

import mmdet3d_parts as parts
import torch
from docs_parts import DOCS, blocks, not_printed
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ml_debugger.records import load

PAGE = DOCS / "learn" / "mmdet3d.md"
if not DATA.is_dir():
    pytest.skip(f"no real LiDAR frames at {DATA}; set MLD_TEST_DATA to their folder", allow_module_level=True)


def test_the_config_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    init_default_scope("mmdet3d")
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    (tmp_path / "pointpillars.py").write_text(blocks(PAGE)["config"], encoding="utf-8")
    config = Config.fromfile(tmp_path / "pointpillars.py")
    (hook,) = config.custom_hooks
    parts.write_dataset(tmp_path / "data")
    small = parts.small_run(parts.coarse(config), tmp_path / "data", tmp_path / "work")
    small.custom_hooks = [hook]
    torch.manual_seed(0)
    Runner.from_cfg(small).train()
    printed = "\n".join(f"ml_debugger: {line}" for line in caplog.messages)
    assert not_printed(PAGE, printed, tmp_path / "store") == []
    assert load("pointpillars", "v1", dataset_type="val").num_rows == parts.FRAMES
    assert load("pointpillars", "v1", dataset_type="train").num_rows == parts.FRAMES // 4
