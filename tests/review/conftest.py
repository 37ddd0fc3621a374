import pytest
from store_factory import StoreFactory


@pytest.fixture
def standard_store(tmp_path):
    """A store with one classification run of two epochs, for one test."""
    made = StoreFactory(tmp_path / "standard")
    made.standard()
    return made.store
