"""What `make dist` leaves: the same bytes for the same commit, what belongs in it and nothing else, a valid page."""

import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import mld_core

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.mark.heavy
def test_two_builds_have_the_same_bytes(build, built, tmp_path):
    again = build(tmp_path)
    digests = [
        {suffix: hashlib.sha256(path.read_bytes()).hexdigest() for suffix, path in one.items()}
        for one in (built, again)
    ]
    assert digests[0] == digests[1]
    assert set(digests[0]) == {".whl", ".gz"}


def test_the_wheel_holds_the_two_packages_with_their_data(built):
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"mld_core", "ml_debugger", f"ml_debugger-{mld_core.__version__}.dist-info"}
    assert {"mld_core/py.typed", "ml_debugger/py.typed"} <= set(names)
    sources = {
        path.relative_to(base).as_posix()
        for base in (ROOT, ROOT / "integrations")
        for top in ("mld_core", "ml_debugger")
        for path in (base / top).rglob("*.py")
        if "node_modules" not in path.parts
    }
    assert sources - set(names) == set()
    assert [name for name in names if "test" in Path(name).name or name.endswith((".pyc", ".log"))] == []


def test_the_wheel_holds_the_pages_and_not_their_sources(built):
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = [name for name in wheel.namelist() if name.startswith("mld_core/app/")]
        page = wheel.read("mld_core/app/static/index.html").decode()
    assert "mld_core/app/static/sources.sha256" in names
    assert [name for name in names if name.startswith("mld_core/app/web/")] == []
    scripts = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', page)
    assert scripts
    assert {f"mld_core/app/static/{name}" for name in (*scripts, "file/app.js", "file/app.css")} <= set(names)


def test_the_source_distribution_builds_the_same_without_the_tests(built):
    with tarfile.open(built[".gz"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    tops = {name.split("/")[0] for name in names}
    assert {"mld_core", "integrations", "examples", "docs", "README.md", "LICENSE", "SECURITY.md"} <= tops
    assert tops & {"tests", ".ci", ".tmp", ".venv", "dist"} == set()
    assert {"hatch_build.py", "mld_core/app/web/package-lock.json", "mld_core/app/static/index.html"} <= names
    assert [name for name in names if "node_modules" in name] == []


def test_the_description_is_valid(built):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_stands_in_one_place():
    text = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r'^version = "', text, re.MULTILINE)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == mld_core.__version__
    assert f"({mld_core.__version__})" in (ROOT / "CHANGELOG.md").read_text()
