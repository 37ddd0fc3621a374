import os
import subprocess
import sys

import pytest
from app_building import app_build
from folders import ROOT


def _build(folder):
    """Source distribution and, by way of it, wheel: what the one lacks is missing in the other."""
    if app_build.find_node():
        app_build.build()
        # What follows takes the pages as they are: nothing is built anew from the source distribution.
        nobody = {"npm_config_registry": "http://127.0.0.1:9", "npm_config_cache": str(folder.parent / "npm")}
    else:
        nobody = {}
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", **nobody}
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
