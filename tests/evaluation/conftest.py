import importlib.util
import sys
from pathlib import Path

import pytest


def _factory_module():
    """The sibling module: test folders are no packages, so it is loaded by path, once."""
    name = "mld_tests_store_factory"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("store_factory.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def records():
    """The module that writes synthetic runs: `make_data`, `StoreFactory`."""
    return _factory_module()


@pytest.fixture
def factory(records, tmp_path, monkeypatch):
    """An empty store, at MLD_HOME."""
    root = tmp_path / "store"
    monkeypatch.setenv("MLD_HOME", str(root))
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    monkeypatch.delenv("MLD_API_KEY", raising=False)
    return records.StoreFactory(root)


@pytest.fixture(scope="session")
def standard_store(records, tmp_path_factory):
    """A store with one finished run of two epochs; not to be written to but for results."""
    made = records.StoreFactory(tmp_path_factory.mktemp("standard") / "store")
    made.standard()
    return made.store
