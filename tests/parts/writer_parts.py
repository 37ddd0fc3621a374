"""What the tests of the writer share."""

from __future__ import annotations

import time

from mld_core.records.format.layout import PassKey
from mld_core.records.read.reader import select

KEY = PassKey("val", 3)


def units(store, run, **kwargs):
    return [item.table()["unit"].to_pylist() for item in select(store, run, **kwargs)]


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
