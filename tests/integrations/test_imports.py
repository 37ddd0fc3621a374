"""What a wrapper loads beside its framework: a training should not wait for what it does not use."""

import json
import subprocess
import sys

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


@pytest.mark.processes
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_loads_little(wrapper):
    framework = WRAPPERS[wrapper]
    pytest.importorskip(framework.partition(".")[0])
    code = (
        f"import json, sys, {framework}; before = set(sys.modules); "
        f"import ml_debugger.{wrapper}; print('loaded', json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.rpartition("loaded ")[2])
    assert HEAVY.isdisjoint(loaded)
    own = [name for name in loaded if name.startswith(("mld_core", "ml_debugger"))]
    assert len(own) <= (MOST_DETECTOR if wrapper == "ultralytics" else MOST_OWN)


@pytest.mark.processes
def test_a_recorder_loads_no_detector_family():
    code = (
        "import json, sys, mld_core.tracing.run.recorder; "
        "print(json.dumps([n for n in sys.modules if n.startswith('mld_core.adapters.')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    light = {f"mld_core.adapters.{name}" for name in ("base", "outputs", "registry", "settings")}
    assert set(json.loads(done.stdout)) <= light
