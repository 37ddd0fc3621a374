"""Workers that are forks: what fails, ends or is torn down in one of them is told, and its other tests run."""

import json
import os
import subprocess
import sys

import forked
import pytest
from folders import ROOT
from forked import files_of

PLUGIN = [sys.executable, "-m", "pytest", "-q", "-p", "forked", "--forks", "2", "-rA", "-c", os.devnull]
ONE = """
import os, pytest

@pytest.fixture(scope="session")
def made():
    yield 1
    raise RuntimeError("torn down")

def test_folder(tmp_path): assert tmp_path.parent.name.startswith("gw")
def test_fails(): print("said before"); assert 0
def test_ends(): os._exit(5)
def test_after(made): pass
"""
OTHER = """
import subprocess

def test_output_of_a_process(capfd):
    subprocess.run(["echo", "heard"])
    assert capfd.readouterr().out == "heard\\n"
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="a fork is not safe here")
def test_what_happens_in_a_worker_is_told(tmp_path):
    (tmp_path / "test_one.py").write_text(ONE)
    (tmp_path / "test_other.py").write_text(OTHER)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "parts"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [*PLUGIN, "--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "made"), str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for line in (
        "FAILED test_one.py::test_fails",
        "FAILED test_one.py::test_ends",
        "PASSED test_one.py::test_folder",
        "PASSED test_one.py::test_after",
        "PASSED test_other.py::test_output_of_a_process",
        "ERROR test_one.py::test_after",
        "said before",
        "ended with 5 in this test",
        "torn down",
    ):
        assert line in done.stdout, done.stdout


class _Item:
    def __init__(self, nodeid):
        self.nodeid = nodeid

    def get_closest_marker(self, name):
        return name if name in self.nodeid else None


def test_the_longest_file_comes_first_and_stays_whole():
    names = ("a.py::one", "b.py::one", "a.py::two", "c.py::new", "d.py::slow", "e.py::new", "e.py::more")
    took = {"a.py::one": 0.1, "a.py::two": 0.1, "b.py::one": 9.0}
    elsewhere = {"e.py": 60.0, "a.py": 99.0, "gone.py": 5.0}
    files = files_of([_Item(name) for name in names], took, elsewhere)
    assert [[item.nodeid for item in own] for own in files] == [
        ["e.py::new", "e.py::more"],
        ["d.py::slow"],
        ["b.py::one"],
        ["c.py::new"],
        ["a.py::one", "a.py::two"],
    ]


def test_what_files_took_is_noted(tmp_path, monkeypatch):
    for name, value in (("ROOT", tmp_path), ("FILES", tmp_path / "seconds.json")):
        monkeypatch.setattr(forked, name, value)
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).touch()
    (tmp_path / "seconds.json").write_text('{"a.py": 40, "c.py": 30, "gone.py": 20}')
    cache = tmp_path / ".pytest_cache" / "v" / "mld"
    cache.mkdir(parents=True)
    (cache / "seconds").write_text('{"a.py::one": 6.4, "a.py::two": 3.0, "b.py::one": 4.9}')
    forked.note()
    assert json.loads((tmp_path / "seconds.json").read_text()) == {"a.py": 9, "c.py": 30}
