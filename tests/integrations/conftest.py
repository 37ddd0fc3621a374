"""Makes this folder's helper modules importable and gives every test a store of its own."""

import sys
from pathlib import Path

import pytest

# Started as processes by the tests; they read their arguments when imported.
collect_ignore_glob = ["*_script.py"]

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store; MLD_HOME points to it, for this process and those it starts."""
    folder = tmp_path / "store"
    monkeypatch.setenv("MLD_HOME", str(folder))
    return folder
