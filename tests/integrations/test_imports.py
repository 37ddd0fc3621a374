"""What a wrapper loads beside its framework: a training should not wait for what it does not use."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HEAVY = {"pandas", "sklearn", "scipy", "duckdb", "requests", "torchvision", "matplotlib", "pyarrow"} | {
    "pytorch_lightning"  # which comes with `lightning`, and costs another second
}
MOST_OWN, MOST_DETECTOR = 35, 50
"""Modules of ours: a bound on what an import costs that does not depend on how busy the machine is."""


WRAPPERS = {
    "lightning": "lightning.pytorch",
    "fabric": "lightning.fabric, torch.utils.data",
    "huggingface": "transformers.trainer",
    "accelerate": "accelerate.tracking, torch.utils.data",
    "mmengine": "mmengine.hooks, mmengine.runner",
    "ultralytics": "ultralytics.models",
    "openpcdet": "torch.distributed",  # imports nothing of pcdet
    "torch": "torch.utils.data",
}


IN_FORKS = """
import importlib, json, os, sys, torch.utils.data
for wrapper, framework in json.loads(sys.argv[1]).items():
    if (pid := os.fork()) == 0:
        for name in framework.split(", "):
            importlib.import_module(name)
        before = set(sys.modules)
        importlib.import_module(f"ml_debugger.{wrapper}")
        with open(os.path.join(sys.argv[2], wrapper), "w") as file:
            json.dump(sorted(set(sys.modules) - before), file)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
"""
"""PyTorch is imported once for them all; each framework and wrapper in a fork of their own."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file a wrapper: the modules that it loads beside its framework."""
    folder = tmp_path_factory.mktemp("loaded")
    there = {
        name: framework for name, framework in WRAPPERS.items() if find_spec(framework.partition(".")[0])
    }
    subprocess.run([sys.executable, "-c", IN_FORKS, json.dumps(there), folder], check=True)
    return folder


@pytest.mark.processes
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_loads_little(wrapper: str, loaded: Path) -> None:
    pytest.importorskip(WRAPPERS[wrapper].partition(".")[0])
    modules = json.loads((loaded / wrapper).read_text())
    assert HEAVY.isdisjoint(modules)
    own = [name for name in modules if name.startswith(("mld_core", "ml_debugger"))]
    assert 0 < len(own) <= (MOST_DETECTOR if wrapper == "ultralytics" else MOST_OWN)


@pytest.mark.processes
def test_a_recorder_loads_no_detector_family() -> None:
    code = (
        "import json, sys, mld_core.tracing.run.recorder; "
        "print(json.dumps([n for n in sys.modules if n.startswith('mld_core.adapters.')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    light = {f"mld_core.adapters.{name}" for name in ("base", "outputs", "registry", "settings")}
    assert set(json.loads(done.stdout)) <= light
