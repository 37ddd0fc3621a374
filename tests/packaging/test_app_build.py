"""The pages are built from their sources, once, and never cost an editable install."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from app_building import INSTALL, app_build, need_pages
from folders import ROOT

NOBODY = "http://127.0.0.1:9"
"""A registry that does not answer."""


@pytest.fixture
def web(tmp_path):
    """A copy of the sources, without what npm installed."""
    return shutil.copytree(app_build.WEB, tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))


@pytest.fixture(scope="module")
def node():
    found = app_build.find_node()
    return found if found is not None else pytest.skip(INSTALL)


@pytest.fixture
def checkout(tmp_path):
    """A fresh clone with what is not committed yet: nothing built, nothing fetched."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder = tmp_path / "checkout"
    for name in filter(None, listed.stdout.split("\0")):
        if not name.startswith(("tests/", ".ci/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture
def cut_off(tmp_path):
    """An environment that reaches Python's registry, not npm's."""
    return {
        **os.environ,
        "npm_config_registry": NOBODY,
        "npm_config_cache": str(tmp_path / "npm"),
        "npm_config_fetch_retries": "0",
    }


def fresh_python(folder):
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def pip(python, *args, env):
    command = [sys.executable, "-m", "pip", "--python", str(python), *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_is_built_is_known_by_its_sources(web, tmp_path):
    static = tmp_path / "static"
    static.mkdir()
    (static / "index.html").write_text("<p>")
    assert not app_build.is_current(web, static)
    (static / app_build.STAMP).write_text(app_build.digest(web))
    assert app_build.is_current(web, static)
    (web / "node_modules").mkdir()
    (web / "node_modules" / "one.js").write_text("1")
    (web / "src" / "one.test.ts").write_text("1")
    assert app_build.is_current(web, static)
    for name in ("package-lock.json", "src/main.ts"):
        before = (web / name).read_text()
        (web / name).write_text(before + "\n")
        assert not app_build.is_current(web, static)
        (web / name).write_text(before)
    (static / "index.html").unlink()
    assert not app_build.is_current(web, static)


@pytest.mark.parametrize(
    ("current", "node", "asked"),
    [(True, None, []), (False, ("node", "npm"), []), (False, None, [app_build.NODE_WHEEL])],
)
def test_node_is_asked_for_only_where_it_is_needed(monkeypatch, current, node, asked):
    monkeypatch.setattr(app_build, "is_current", lambda: current)
    monkeypatch.setattr(app_build, "find_node", lambda: node)
    assert app_build.AppBuildHook.dependencies(None) == asked


def test_an_old_node_is_none(monkeypatch, tmp_path):
    for name in ("node", "npm"):
        (tmp_path / name).write_text("#!/bin/sh\necho v18.19.0\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(app_build.importlib.util, "find_spec", lambda _: None)
    assert app_build.find_node() is None
    (tmp_path / "node").write_text("#!/bin/sh\necho v20.19.1\n")
    assert app_build.find_node() == (str(tmp_path / "node"), str(tmp_path / "npm"))


def test_a_registry_that_does_not_answer_is_said(monkeypatch, node, web, cut_off):
    for name, value in cut_off.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(app_build.AppBuildError, match="npm could not install the packages of the app"):
        app_build.fetch(node, web=web)


def test_sources_that_do_not_build_are_said(node, tmp_path):
    need_pages()
    web = shutil.copytree(app_build.WEB, tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    (web / "node_modules").symlink_to(app_build.WEB / "node_modules")
    (web / "src" / "main.ts").write_text("import './absent.ts';")
    with pytest.raises(app_build.AppBuildError, match=r"absent\.ts"):
        app_build.bundle(node, tmp_path / "made", web=web)


@pytest.mark.heavy
def test_two_builds_of_the_pages_have_the_same_bytes(node, tmp_path):
    need_pages()
    app_build.fetch(node)
    app_build.bundle(node, tmp_path)
    made, there = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path, app_build.STATIC)
    )
    assert made == there


@pytest.mark.slow
@pytest.mark.processes
def test_an_editable_install_without_npm_has_no_pages_and_says_so(node, checkout, cut_off, tmp_path):
    python = fresh_python(tmp_path / "env")
    said = pip(python, "install", "-v", "--no-deps", "-e", checkout, env=cut_off)
    pip(python, "install", "-q", "editables", env=cut_off)
    assert "make app" in said
    assert not (checkout / "mld_core" / "app" / "static").exists()
    done = subprocess.run(
        [python, "-I", "-c", "import mld_core; print(mld_core.__file__)"],
        capture_output=True, text=True, cwd="/", check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).parent == checkout / "mld_core"


@pytest.mark.heavy
@pytest.mark.processes
def test_a_wheel_is_whole_where_no_node_is_on_the_path(checkout, tmp_path):
    """Node comes as a package (60 MB), for the build alone."""
    hidden = os.pathsep.join(
        folder
        for folder in os.environ["PATH"].split(os.pathsep)
        if not (Path(folder) / "node").exists() or Path(folder) == Path(sys.executable).parent
    )
    pip(sys.executable, "wheel", "--no-deps", "-w", tmp_path, checkout, env={**os.environ, "PATH": hidden})
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert {"mld_core/app/static/index.html", f"mld_core/app/static/{app_build.STAMP}"} <= set(names)
    assert any(name.startswith("mld_core/app/static/assets/") and name.endswith(".js") for name in names)
