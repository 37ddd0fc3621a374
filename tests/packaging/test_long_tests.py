"""The list of long tests holds tests that are there, each once, and pytest finds them by their marks."""

import ast
import subprocess
import sys
from collections import Counter

import long_tests
import pytest
from folders import ROOT

FILES = [(number, file) for number, part in enumerate(long_tests.parts(), 1) for file in part]


def test_a_file_stands_in_one_part():
    assert {file: n for file, n in Counter(file for _, file in FILES).items() if n > 1} == {}


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {
        "::".join(filter(None, (outer, node.name)))
        for outer, body in [("", tree.body)]
        + [(one.name, one.body) for one in tree.body if isinstance(one, ast.ClassDef)]
        for node in body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize(("number", "file"), FILES)
def test_every_long_test_is_there(number, file):
    listed = long_tests.parts()[number - 1][file]
    assert {name.partition("[")[0] for name in listed} - functions(file) == set()
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("mark", ["long", "part_{}", "not long"])
def test_pytest_takes_them_by_their_mark(mark):
    _, number, file = min(((ROOT / file).stat().st_size, number, file) for number, file in FILES)
    listed = {f"{file}::{test}" for test in long_tests.parts()[number - 1][file]}
    asked = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", mark.format(number), file]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {line for line in done.stdout.splitlines() if line.startswith(file)}
    assert (found == listed) if mark != "not long" else not (found & listed)
    assert found or mark == "not long"
