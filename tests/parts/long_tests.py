"""The long tests: those that took more than about 2 s of CPU and run no line of the product that others do not.

They take half of the time of all tests. `make test` leaves them to `make test-long`, so that it stays a loop that people
use; `make quick` runs those nearest to a change. They are further seeds, sizes, kinds and whole stories; of what only
they reached the cheapest that reach it came back (coverage by test, the processes that tests start included). Five
parts, each with whole files, take about as long.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

LONG = Path(__file__).with_name("long.json")
"""[first part, ..., fifth]: file -> its long tests, by the names that pytest gives them."""


def parts() -> list[dict[str, list[str]]]:
    """The long tests of each part."""
    found: list[dict[str, list[str]]] = json.loads(LONG.read_text("utf-8"))
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them before pytest asks for marks."""
    marks = {
        f"{file}::{test}": f"part_{number}"
        for number, part in enumerate(parts(), 1)
        for file, tests in part.items()
        for test in tests
    }
    for item in items:
        if part := marks.get(item.nodeid):
            item.add_marker("long")
            item.add_marker(part)
