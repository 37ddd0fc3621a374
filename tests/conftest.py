"""Tests of real processes get a second try, and numbers are printed as NumPy and PyTorch print them.

Servers, ranks and killed trainings have clocks of their own, for which a busy machine can be too slow once; the
report lists such a test under RERUN. What fails twice has failed.

Ultralytics sets print options of its own when it is imported, and doctests compare what is printed.
"""

import sys
from collections.abc import Iterator

import numpy as np
import pytest

_AS_INSTALLED = np.get_printoptions()


def _restore() -> None:
    if np.get_printoptions() != _AS_INSTALLED:
        np.set_printoptions(**_AS_INSTALLED)
        if "torch" in sys.modules:
            sys.modules["torch"].set_printoptions(profile="default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the second try, where the plugin for it is installed."""
    if config.pluginmanager.hasplugin("rerunfailures"):
        for item in items:
            if item.get_closest_marker("processes"):
                item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_collection_finish() -> None:
    """Test modules have been imported, and with them what they test."""
    _restore()


@pytest.fixture(autouse=True)
def _printed_as_installed() -> Iterator[None]:
    yield
    _restore()
