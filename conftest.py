"""What every test and doctest begins with: numbers printed as NumPy and PyTorch print them.

Ultralytics sets print options of its own when it is imported, and doctests compare what is printed.
"""

import sys

import numpy as np
import pytest

_AS_INSTALLED = np.get_printoptions()


@pytest.fixture(autouse=True)
def _printed_as_installed() -> None:
    if np.get_printoptions() != _AS_INSTALLED:
        np.set_printoptions(**_AS_INSTALLED)
        if "torch" in sys.modules:
            sys.modules["torch"].set_printoptions(profile="default")
