import inspect
import os

import once
import pytest
from typer.testing import CliRunner

from mld_core.cli.main import app


def runner():
    """Keeps stdout and stderr apart, which older clicks must be asked for."""
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    """No setting of the machine reaches a test; the default store is an empty folder."""
    for name in ("MLD_HOME", "MLD_API_ENDPOINT", "MLD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def _write(root, records):
    factory = records.StoreFactory(root)
    factory.standard("net", "v1", strength=1.5)
    other = factory.run("other", "v1")
    factory.add_pass(other, "val", records.make_data(40), world_size=2, sealing=(0,))
    factory.standard("net", "v2", strength=2.5)
    for version in ("v1", "v2"):
        done = runner().invoke(app, ["evaluate", "net", version, "--store", str(root)])
        assert done.exit_code == 0, done.output


@pytest.fixture(scope="session")
def evaluated(records, tmp_path_factory):
    """A store with three runs: net v1 (older) and v2 with results, other v1 in between without any."""
    root = tmp_path_factory.mktemp("cli") / "store"
    return once.copied("cli", lambda folder: _write(folder, records), root)


@pytest.fixture
def factory(records, tmp_path):
    return records.StoreFactory(tmp_path / "store")


@pytest.fixture
def mld():
    """Run `mld`; stdout is no terminal, as in a pipe."""

    def run(*arguments):
        return runner().invoke(app, [str(one) for one in arguments], env=dict(os.environ))

    return run
