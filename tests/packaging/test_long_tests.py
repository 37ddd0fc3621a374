"""The list of long tests holds tests that are there, each once, and leaves `make test` something of every file."""

import ast
import subprocess
import sys
from collections import Counter

import long_tests
import pytest
from folders import ROOT

FILES = [(number, file) for number, half in enumerate(long_tests.halves(), 1) for file in half]


def test_a_file_stands_in_one_half():
    assert {file: n for file, n in Counter(file for _, file in FILES).items() if n > 1} == {}


@pytest.mark.parametrize(("number", "file"), FILES)
def test_every_long_test_is_there(number, file):
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    there = {
        "::".join(filter(None, (outer, node.name)))
        for outer, body in [("", tree.body)]
        + [(one.name, one.body) for one in tree.body if isinstance(one, ast.ClassDef)]
        for node in body
        if isinstance(node, ast.FunctionDef)
    }
    listed = long_tests.halves()[number - 1][file]
    assert {name for name in listed if name.partition("[")[0] not in there} == set()
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("mark", ["long", "half_{}", "not long"])
def test_pytest_takes_them_by_their_mark(mark):
    number, file = min(FILES, key=lambda one: (ROOT / one[1]).stat().st_size)
    listed = {f"{file}::{test}" for test in long_tests.halves()[number - 1][file]}
    asked = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", mark.format(number), file]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    found = {line for line in done.stdout.splitlines() if line.startswith(file)}
    assert found
    assert (found == listed) if mark != "not long" else not (found & listed)
