"""After collection and after every test here, numbers are printed as NumPy and PyTorch print them.

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


def pytest_collection_finish() -> None:
    """Test modules have been imported, and with them what they test."""
    _restore()


@pytest.fixture(autouse=True)
def _printed_as_installed() -> Iterator[None]:
    yield
    _restore()
