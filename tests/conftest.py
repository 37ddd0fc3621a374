"""What all tests share: modules that make data, where started processes find them, how numbers are printed."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optional
import pytest
from long_tests import pytest_collection_modifyitems  # noqa: F401 (a hook)
from run_notes import pytest_terminal_summary  # noqa: F401 (a hook)

_AS_INSTALLED = np.get_printoptions()


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start import the helper modules as the tests do."""
    folders = [str(folder) for folder in config.getini("pythonpath")]
    given = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one and one not in folders]
    os.environ["PYTHONPATH"] = os.pathsep.join([*given, *folders])
    # Hundreds of trainings would start a process each: only the tests of that process let them.
    os.environ["MLD_LIVE"] = "0"
    os.environ["MLD_LIVE_NICE"] = "0"  # a full machine leaves nothing to who waits for what is left
    # Workers and started processes read what one of them has compiled, also where the environment says not to keep it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def _restore() -> None:
    if np.get_printoptions() != _AS_INSTALLED:
        np.set_printoptions(**_AS_INSTALLED)
        if "torch" in sys.modules:
            sys.modules["torch"].set_printoptions(profile="default")


def pytest_collection_finish() -> None:
    """Test modules have been imported, and with them what they test: the collector need not walk through it again."""
    _restore()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _printed_as_installed() -> Iterator[None]:
    """Ultralytics sets print options of its own when it is imported, and doctests compare what is printed."""
    yield
    _restore()


@pytest.fixture(scope="session")
def torchvision():
    """The package, where one fits the installed PyTorch."""
    return optional.torchvision()


@pytest.fixture(scope="session")
def timm():
    """The package, which imports torchvision."""
    optional.torchvision()
    return pytest.importorskip("timm")


CHROMIUM_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
BROWSERS = (
    *("/usr/bin/chromium-headless-shell", "/usr/bin/chromium"),
    *("/usr/bin/chromium-browser", "/usr/bin/google-chrome"),
)
"""The first that is there. A new context and page cost the shell, the same engine without a window's parts, a fifth."""


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, one for all tests of a process: playwright starts once. Skipped where it is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright (extra dev) drives the browser"
    )
    path = next((path for path in BROWSERS if Path(path).exists()), None)
    if path is None:
        pytest.skip(f"no browser at {', '.join(BROWSERS)}: install the package chromium-headless-shell")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=list(CHROMIUM_ARGUMENTS))
        yield started
        started.close()


@pytest.fixture(scope="session")
def records():
    """The module that writes synthetic runs: `make_data`, `StoreFactory`."""
    import store_factory

    return store_factory


@pytest.fixture(scope="session")
def planted():
    """The function that makes a split with faults planted."""
    from planted import planted

    return planted
