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
    modules = (
        "ultralytics.yolo",
        "ultralytics.own",
        "detection3d.openpcdet",
        "detr.huggingface",
        "torchvision.rcnn",
    )
    code = (
        "import importlib, os\n"
        "import torch\n"  # what all of them import, once; of ours nothing
        f"for name in {modules!r}:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        importlib.import_module(f'mld_core.adapters.{name}')\n"
        "        import mld_core.adapters.registry as r\n"
        "        print(len(list(r.families())))\n"
        "        break\n"
        "    assert os.waitpid(child, 0)[1] == 0, name\n"
    )
    found = _run(code).split()
    assert len(found) == len(modules)
    assert len(set(found)) == 1
