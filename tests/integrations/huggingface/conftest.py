"""A training that a test let fail is noticed a second later: not in the messages of the test behind it."""

import threading
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _left_trainings_are_told() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "mld-leaving":
            thread.join(30)
