"""The built wheel, installed once into a fresh environment without torch."""

import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import pytest


def run(*command: object) -> str:
    """Run a command outside the checkout; its output is the failure's message."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def fresh_python(
    built: dict[str, Path], install: Callable[[Path, Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A new virtual environment with the wheel and its base dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    install(python, built[".whl"])
    return python


@pytest.mark.slow
@pytest.mark.processes
def test_wheel_works_without_torch(fresh_python: Path) -> None:
    rooms = "records, evaluation, report, service, cli"
    code = f"from mld_core import {rooms}; import sys; print('torch' in sys.modules)"
    assert run(fresh_python, "-I", "-c", code).strip() == "False"
    code = "import importlib.util as u; print(u.find_spec('torch'))"
    assert run(fresh_python, "-I", "-c", code).strip() == "None", "torch must not come with the base install"
    code = "import ml_debugger.records, ml_debugger.evaluator; print(ml_debugger.__version__)"
    assert run(fresh_python, "-I", "-c", code).strip()


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", ["tests", "integrations", "examples", "docs"])
def test_wheel_holds_only_the_two_packages(fresh_python: Path, name: str) -> None:
    done = subprocess.run(
        [fresh_python, "-I", "-c", f"import {name}"], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.slow
@pytest.mark.processes
def test_wheel_has_the_command_and_typing_marks(fresh_python: Path) -> None:
    assert "evaluate" in run(fresh_python.parent / "mld", "--help")
    code = (
        "import importlib.resources as r; "
        "print(all(r.files(p).joinpath('py.typed').is_file() for p in ('mld_core', 'ml_debugger')))"
    )
    assert run(fresh_python, "-I", "-c", code).strip() == "True"


@pytest.mark.slow
@pytest.mark.processes
def test_wrapper_without_its_framework_says_what_to_install(fresh_python: Path) -> None:
    done = subprocess.run(
        [fresh_python, "-I", "-c", "import ml_debugger.lightning"],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 1
    assert "pip install" in done.stderr
