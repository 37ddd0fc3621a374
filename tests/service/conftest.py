import tempfile
from pathlib import Path

import pytest
import server_parts

pytest.importorskip("fastapi", reason='the server is not installed: pip install "ml-debugger[server]"')


@pytest.fixture(scope="session")
def parts():
    """The module with the processes these tests start."""
    return server_parts


@pytest.fixture(scope="session")
def server(parts, tmp_path_factory):
    """`mld serve` as anyone starts it: SQLite, a folder, one worker."""
    process = parts.ServerProcess(tmp_path_factory.mktemp("server") / "data")
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def api(server):
    """Requests with the first key: all scopes, the root organization."""
    return server.api()


@pytest.fixture(scope="session")
def recorded(records, tmp_path_factory):
    """A store with one run (train, val, test) and its key."""
    factory = records.StoreFactory(tmp_path_factory.mktemp("recorded") / "store")
    return factory.store, factory.standard()


@pytest.fixture(scope="session")
def postgres(parts):
    """A running PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="mld-pg-") as folder:
        found = parts.Postgres(Path(folder) / "pg")
        if found.missing:
            pytest.skip(found.missing)
        found.start()
        yield found
        found.down("immediate")


@pytest.fixture(scope="session")
def s3(parts, tmp_path_factory):
    """A running S3-compatible server with one bucket."""
    found = parts.S3Server(tmp_path_factory.mktemp("s3"))
    if found.missing:
        pytest.skip(found.missing)
    found.start()
    yield found
    found.stop()
