"""Fixtures of the tracers' tests."""

import pytest

from mld_core.tracing.guard import forget_told


@pytest.fixture(autouse=True)
def _fresh_messages():
    """What is told once is told once per test."""
    forget_told()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home, no service."""
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLD_API_KEY", raising=False)
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    return tmp_path / "home"
