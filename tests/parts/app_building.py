"""The app's build, and the pages it makes, for tests."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from folders import ROOT


def _build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


app_build = _build_script()
INSTALL = "no Node.js with npm here: install the packages nodejs and npm (from 20.19 on), then `make app`"


def need_pages() -> None:
    """Builds the pages if need be; skips the test where they cannot be built."""
    if app_build.is_current():
        return
    if app_build.find_node() is None:
        pytest.skip(INSTALL)
    app_build.build()
