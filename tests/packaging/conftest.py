import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from app_building import app_build
from folders import ROOT

BESIDE = Path(sys.executable).with_name("uv")
UV = str(BESIDE) if BESIDE.exists() else shutil.which("uv")
"""It makes the environments of a build in a fraction of pip's time, where the set-up brought it."""


def _build(folder):
    """Source distribution and, by way of it, wheel: what the one lacks is missing in the other."""
    if app_build.find_node():
        app_build.build()
        # What follows takes the pages as they are: nothing is built anew from the source distribution.
        nobody = {"npm_config_registry": "http://127.0.0.1:9", "npm_config_cache": str(folder.parent / "npm")}
    else:
        nobody = {}
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", **nobody}
    by = ["--installer", "uv"] if UV else []
    env["PATH"] = os.pathsep.join([*([str(Path(UV).parent)] if UV else []), env["PATH"]])
    command = [sys.executable, "-m", "build", "-q", *by, "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path.suffix: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def build():
    """Builds into a folder: suffix -> file."""
    return _build


@pytest.fixture(scope="session")
def install():
    """`install(python, package)`, into an environment without pip, and by pip without uv."""

    def call(python, package):
        by_pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
        command = [sys.executable, ROOT / ".ci" / "install", python] if UV else by_pip
        done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return call


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """What `make dist` leaves, built once."""
    return _build(tmp_path_factory.mktemp("dist"))
