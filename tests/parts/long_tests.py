"""The long tests: those that took more than about 2 s of CPU, what they start included, but of each file the shortest.

They take two thirds of the time of all tests. `make test` leaves them to `make test-long`, so that it stays a loop that
people use; `make quick` runs those nearest to a change. Two halves, each with whole files, take about as long.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

LONG = Path(__file__).with_name("long.json")
"""[first half, second half]: file -> its long tests, by the names that pytest gives them."""


def halves() -> list[dict[str, list[str]]]:
    """The long tests of either half."""
    found: list[dict[str, list[str]]] = json.loads(LONG.read_text("utf-8"))
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them before pytest asks for marks."""
    marks = {
        f"{file}::{test}": f"half_{number}"
        for number, half in enumerate(halves(), 1)
        for file, tests in half.items()
        for test in tests
    }
    for item in items:
        if half := marks.get(item.nodeid):
            item.add_marker("long")
            item.add_marker(half)
