"""Packages a machine may be without: the tests that need them are skipped and say why."""

from typing import Any

import pytest

LEFT_OUT = "torchvision is not here: set-up found no build that fits the installed PyTorch (.ci/torchvision)"


def torchvision(module: str = "torchvision") -> Any:
    """torchvision, or one of its modules; without it the test, or the file at whose top this stands, is skipped."""
    return pytest.importorskip(module, reason=LEFT_OUT)
