"""What a wrapper loads beside its framework: a training should not wait for what it does not use."""

import json
import subprocess
import sys

import pytest

HEAVY = {"pandas", "sklearn", "scipy", "duckdb", "requests", "torchvision", "matplotlib", "pyarrow"}
MOST_OWN = 20
"""Modules of ours: a bound on what an import costs that does not depend on how busy the machine is."""


@pytest.mark.processes
def test_the_lightning_wrapper_loads_little():
    pytest.importorskip("lightning")
    code = (
        "import json, sys, lightning.pytorch; from importlib.util import find_spec; "
        "find_spec('pytorch_lightning') and __import__('pytorch_lightning'); before = set(sys.modules); "
        "import ml_debugger.lightning; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert HEAVY.isdisjoint(loaded)
    own = [name for name in loaded if name.startswith(("mld_core", "ml_debugger"))]
    assert len(own) <= MOST_OWN


@pytest.mark.processes
def test_a_recorder_loads_no_detector_family():
    code = (
        "import json, sys, mld_core.tracing.run.recorder; "
        "print(json.dumps([n for n in sys.modules if n.startswith('mld_core.adapters.')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    light = {f"mld_core.adapters.{name}" for name in ("base", "outputs", "registry", "settings")}
    assert set(json.loads(done.stdout)) <= light
