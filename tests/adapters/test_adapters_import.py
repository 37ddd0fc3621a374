"""The package of adapters: imported without torch, and importing no framework."""

from __future__ import annotations

import subprocess
import sys

FRAMEWORKS = (
    "torchvision",
    "ultralytics",
    "transformers",
    "mmdet",
    "mmdet3d",
    "mmengine",
    "tensorflow",
    "keras",
)


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import mld_core.adapters, mld_core.adapters.registry as r\n"
        "print([f.family for f in r.families('detection')])"
    )
    assert "torchvision" not in _run(code)


def test_no_framework_is_imported_and_the_families_are_there() -> None:
    code = (
        "import sys, mld_core.adapters, mld_core.adapters.registry as r\n"
        f"print([f for f in {FRAMEWORKS!r} if f in sys.modules])\n"
        "print(*[f.family for f in r.families('detection')], sep=',')"
    )
    loaded, families = _run(code).splitlines()
    assert loaded == "[]"
    expected = {
        "torchvision R-CNN",
        "torchvision RetinaNet",
        "torchvision FCOS",
        "torchvision SSD",
        "CenterNet",
    }
    assert expected | {"Ultralytics YOLO", "Ultralytics RT-DETR"} <= set(families.split(","))
