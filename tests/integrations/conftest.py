"""Gives every test a store of its own."""

from pathlib import Path

import pytest


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store; MLD_HOME points to it, for this process and those it starts."""
    folder = tmp_path / "store"
    monkeypatch.setenv("MLD_HOME", str(folder))
    return folder
