"""Every wrapper and tracer shows the arguments of the public API, whole, to `help`, jsonargparse and mypy."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mld_core.tracing.guard import ConfigurationProblem

ROOT = Path(__file__).parents[2]
FUNCTION = Callable[[Any], Any] | None
FIELDS = Sequence[Mapping[str, Any]] | None

# Section 7 of the public API: name -> (default, annotation), in order.
NAMES: dict[str, tuple[Any, Any]] = {
    "model_name": (None, str | None),
    "version_name": (None, str | None),
}
OPTIONS: dict[str, tuple[Any, Any]] = {
    "task": (None, str | None),
    "model": (None, Any),
    "target_layers": (None, Mapping[str, str] | None),
    "n_class": (None, int | None),
    "class_names": (None, Sequence[str] | None),
    "id_fn": (None, FUNCTION),
    "input_fn": (None, FUNCTION),
    "label_fn": (None, FUNCTION),
    "image_fn": (None, FUNCTION),
    "fields_fn": (None, Callable[[Any], Mapping[str, Any]] | None),
    "additional_fields": (None, FIELDS),
    "additional_label_fields": (None, FIELDS),
    "splits": (None, Sequence[str] | None),
    "every_n_epochs": (1, int),
    "replay_train": (False, bool | float),
    "score_thresh": (None, float | None),
    "iou_thresh": (None, float | None),
    "max_detections": (None, int | None),
    "pc_range": (None, Sequence[float] | None),
    "ground_truth_provider": (None, Any),
    "store": (None, Any),
    "queue_mb": (256, float),
    "on_full": ("block", str),
    "roll_mb": (64, float),
    "roll_seconds": (10, float),
    "vector_dtype": ("float16", str),
    "keep_vectors": (2, int | None),
    "input_hash": (True, bool),
    "force_table_recreate": (False, bool),
    "live": (True, bool),
    "log_to_trainer": (False, bool),
    "auto_sync": (False, bool),
    "api_endpoint": (None, str | None),
    "api_key": (None, str | None),
}
REQUIRED = inspect.Parameter.empty
LOADERS = {"train": (None, Any), "val": (None, Any), "test": (None, Any)}
BOUND = {"max_store_gb": (None, float | None)}  # of the recorder, which `trace` always took too
TRACER: dict[str, tuple[Any, Any]] = {
    "model": (REQUIRED, Any),
    "model_name": (REQUIRED, str),
    "version_name": (REQUIRED, str),
    "target_layers": (None, Mapping[str, str] | None),
    "additional_fields": (None, Any),
    "additional_label_fields": (None, Any),
    "auto_sync": (False, bool),
    "force_table_recreate": (False, bool),
    "api_endpoint": (None, str | None),
    "api_key": (None, str | None),
}
DETECTOR = {name: OPTIONS[name] for name in ("n_class", "score_thresh", "iou_thresh")}


def less(*names: str) -> dict[str, tuple[Any, Any]]:
    return {name: value for name, value in OPTIONS.items() if name not in names}


# path -> (positional arguments, keyword arguments)
SIGNATURES: dict[str, tuple[dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]]]] = {
    "ml_debugger.lightning.MLDebuggerCallback": (NAMES, OPTIONS),
    "ml_debugger.huggingface.MLDebuggerCallback": (NAMES, OPTIONS),
    "ml_debugger.mmengine.MLDebuggerHook": (NAMES, OPTIONS),
    "ml_debugger.accelerate.trace": (
        {"accelerator": (REQUIRED, Any), "model": (REQUIRED, Any)},
        {**LOADERS, **NAMES, **less("model"), **BOUND},
    ),
    "ml_debugger.fabric.trace": (
        {"fabric": (REQUIRED, Any), "model": (REQUIRED, Any)},
        {**LOADERS, **NAMES, **less("model"), **BOUND},
    ),
    "ml_debugger.ultralytics.attach": (
        {"model": (REQUIRED, Any), **NAMES},
        {**less("model", "pc_range", "ground_truth_provider"), "task": ("detection", str | None)},
    ),
    "ml_debugger.openpcdet.attach": (
        {"model": (REQUIRED, None), "train_loader": (None, Any), "test_loader": (None, Any), **NAMES},
        {"start_epoch": (0, int), **less("model"), "task": ("detection3d", str | None)},
    ),
    "ml_debugger.training.ClassificationTracer": (TRACER, {}),
    "ml_debugger.training.ObjectDetectionTracer": (
        {**TRACER, **DETECTOR, "max_detections_per_image": (None, int | None)},
        {},
    ),
    "ml_debugger.training.ObjectDetection3DTracer": (
        {
            **TRACER,
            **DETECTOR,
            "max_detections_per_frame": (None, int | None),
            "pc_range": OPTIONS["pc_range"],
            "ground_truth_provider": OPTIONS["ground_truth_provider"],
        },
        {},
    ),
}


def found(path: str) -> Any:
    module, _, name = path.rpartition(".")
    packages = {
        "fabric": "lightning",
        "huggingface": "transformers",
        "openpcdet": "torch",
        "training": "torch",
    }
    own = module.split(".")[1]
    pytest.importorskip("torch" if own == "ultralytics" else packages.get(own, own))
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", SIGNATURES)
def test_the_signature_is_whole(path: str) -> None:
    shown = list(inspect.signature(found(path)).parameters.values())
    positional, keyword = SIGNATURES[path]
    kinds = {p.name: p.kind for p in shown}
    assert [p.name for p in shown] == [*positional, *keyword]
    assert {kinds[name] for name in positional} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert {kinds[name] for name in keyword} <= {inspect.Parameter.KEYWORD_ONLY}
    expected = {**positional, **keyword}
    assert {p.name: p.default for p in shown} == {name: default for name, (default, _) in expected.items()}
    for parameter in shown:
        annotation = expected[parameter.name][1]
        assert annotation is None or parameter.annotation == annotation, parameter.name


def test_an_unknown_argument_is_refused_by_the_name_of_what_was_called() -> None:
    callback = found("ml_debugger.lightning.MLDebuggerCallback")
    with pytest.raises(TypeError, match=r"MLDebuggerCallback.*scor_thresh"):
        callback(scor_thresh=0.1)
    with pytest.raises(ConfigurationProblem, match="score_thresh=2"):
        callback(score_thresh=2)


def test_every_argument_is_described_where_help_and_the_command_line_look() -> None:
    callback = found("ml_debugger.lightning.MLDebuggerCallback")
    described = inspect.getdoc(callback.__init__) or ""
    assert [name for name in {**NAMES, **OPTIONS} if f"\n    {name}: " not in described] == []


def test_lightnings_command_line_sees_types_and_descriptions() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    callback = found("ml_debugger.lightning.MLDebuggerCallback")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(callback, "callback")
    assert {a.dest for a in parser._actions} >= {f"callback.{name}" for name in {**NAMES, **OPTIONS}}
    told = parser.format_help()
    assert "epochs whose features are kept per split" in told
    config = parser.parse_args(
        ["--callback.splits=[val]", "--callback.roll_seconds=2", "--callback.model_name=m"]
    )
    assert (config.callback.splits, config.callback.roll_seconds) == (["val"], 2.0)
    with pytest.raises(jsonargparse.ArgumentError):
        parser.parse_args(["--callback.every_n_epochs=often"])


def test_type_checkers_see_the_whole_signature(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "use.py"
    script.write_text(
        "from mld_core.tracing.run.arguments import arguments_of\n"
        "from mld_core.tracing.run.options import WrapperOptions\n"
        "class Callback:\n"
        "    @arguments_of(WrapperOptions)\n"
        "    def __init__(self, options: WrapperOptions) -> None: ...\n"
        "@arguments_of(WrapperOptions)\n"
        "def attach(given: WrapperOptions) -> int: return 1\n"
        "reveal_type(Callback.__init__)\n"
        "reveal_type(attach)\n"
        "Callback('m', scor_thresh=0.1)\n"
        "attach('m', keep_vectors='all')\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(script)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout.splitlines()
    told = [line.partition(": ")[2] for line in told if "use.py" in line]
    shown = [line for line in told if "Revealed type" in line]
    assert len(shown) == 2
    for line in shown:
        assert [name for name in [*NAMES, *OPTIONS] if f"{name}: " not in line] == []
    errors = [line for line in told if line.startswith("error: ")]
    assert len(errors) == 2
    assert "scor_thresh" in errors[0]
    assert "keep_vectors" in errors[1]
