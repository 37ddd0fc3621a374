"""The Lightning parts of the integration tests serve here too."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store; MLD_HOME points to it."""
    folder = tmp_path / "store"
    monkeypatch.setenv("MLD_HOME", str(folder))
    return folder
