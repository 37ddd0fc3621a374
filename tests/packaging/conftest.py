import os
import subprocess
import sys

import pytest
from folders import ROOT


def _build(folder):
    """Source distribution and, by way of it, wheel: what the one lacks is missing in the other."""
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-m", "build", "-q", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path.suffix: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def build():
    """Builds into a folder: suffix -> file."""
    return _build


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """What `make dist` leaves, built once."""
    return _build(tmp_path_factory.mktemp("dist"))
