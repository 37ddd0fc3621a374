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


def test_every_module_can_be_imported_first() -> None:
    """A wrapper names one family's module; that must not depend on what was imported before."""
    code = (
        "import importlib, sys\n"
        "name = sys.argv[1]\n"
        "importlib.import_module(name)\n"
        "import mld_core.adapters.registry as r\n"
        "print(len(list(r.families())))"
    )
    modules = (
        "ultralytics.yolo",
        "ultralytics.own",
        "detection3d.openpcdet",
        "detr.huggingface",
        "torchvision.rcnn",
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, f"mld_core.adapters.{name}"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        for name in modules
    }
    assert len(found) == 1
    assert "" not in found
