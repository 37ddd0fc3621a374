"""Every name that the documents and the examples import is there, and so are the class paths that users write down."""

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {"keras": "keras", "mmengine": "mmengine", "lightning": "lightning", "huggingface": "transformers"}

CLASS_PATHS = (
    "ml_debugger.training.ClassificationTracer",
    "ml_debugger.training.ObjectDetectionTracer",
    "ml_debugger.training.ObjectDetection3DTracer",
    "ml_debugger.training.classification.classification_torchtracer.ClassificationTrainingTorchTracer",
    "ml_debugger.training.object_detection.object_detection_torchtracer.ObjectDetectionTrainingTorchTracer",
    "ml_debugger.training.object_detection_3d.object_detection_3d_torchtracer.ObjectDetection3DTrainingTorchTracer",
    "ml_debugger.tracer.DetectionOutput",
    "ml_debugger.tracer.Detection3DOutput",
    "ml_debugger.tracer.classification.classification_torchtracer.ClassificationTorchTracer",
    "ml_debugger.tracer.object_detection.object_detection_torchtracer.ObjectDetectionTorchTracer",
    "ml_debugger.tracer.object_detection_3d.object_detection_3d_torchtracer.ObjectDetection3DTorchTracer",
    "ml_debugger.evaluator.Evaluator",
    "ml_debugger.evaluator.evaluator.Evaluator",
    "ml_debugger.lightning.MLDebuggerCallback",
    "ml_debugger.huggingface.MLDebuggerCallback",
    "ml_debugger.mmengine.MLDebuggerHook",
    "ml_debugger.accelerate.trace",
    "ml_debugger.fabric.trace",
    "ml_debugger.ultralytics.attach",
    "ml_debugger.openpcdet.attach",
    "ml_debugger.keras.MLDebuggerCallback",
    "ml_debugger.records.load",
    "ml_debugger.records.scan",
    "mld_core.adapters.base.Adapter",
    "mld_core.adapters.registry.register",
    "mld_core.adapters.outputs.DetectionOutput",
    "mld_core.adapters.outputs.Detection3DOutput",
    "mld_core.report.write_report",
    "mld_core.report.write_comparison",
)


def _imported(text: str) -> set[str]:
    """Dotted names that the Python blocks of a page import from us."""
    found = set()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        try:
            tree = ast.parse(block)
        except SyntaxError:  # a fragment: `trainer(...)` with dots, or a config
            found |= {
                f"{a}.{b.strip()}" for a, b in re.findall(r"from (ml_debugger[\w.]*) import (\w+)", block)
            }
            continue
        found |= _names(tree)
    return found


def _names(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "ml_debugger",
            "mld_core",
        ):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] in ("ml_debugger", "mld_core")}
    return found


def _named_in_text(text: str) -> set[str]:
    """Dotted class paths in backticks."""
    return set(re.findall(r"`((?:mld_core|ml_debugger)(?:\.\w+)+)", text))


DOCUMENTED = sorted(
    set().union(*(_imported(page.read_text()) | _named_in_text(page.read_text()) for page in PAGES))
    | set().union(*(_names(ast.parse(path.read_text())) for path in (ROOT / "examples").rglob("*.py")))
)


def _resolve(path: str):
    """The module or the attribute of a module that a dotted path names."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        name = ".".join(parts[:cut])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize("path", sorted({*DOCUMENTED, *CLASS_PATHS}))
def test_a_documented_name_is_there(path):
    framework = NEEDS.get(path.split(".")[1]) if path.startswith("ml_debugger.") else None
    if framework is not None and find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed here")
    assert _resolve(path) is not None


def test_the_pages_name_something():
    assert {"ml_debugger.lightning.MLDebuggerCallback", "ml_debugger.evaluator.Evaluator"} <= set(DOCUMENTED)
