"""`make quick`: lint and types from their caches, doctests of what was changed, and the tests nearest to it.

Nearest first by the graph of imports: a test of the room that was changed, then one that imports a changed module,
then one that imports what imports it. As many files as fit into the time, by what they took when they last ran;
what is left is named, and `make test` runs it.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grimp
from folders import ROOT

SECONDS = 45.0
"""Of tests, per worker; what the tools and the start of pytest take comes on top."""

UNKNOWN = 4.0
"""Seconds of a file of tests that never ran here."""

CHANGED, FAR = -1, 99
"""Distances: of a file of tests that is changed itself, and of one that nothing changed reaches."""

PARTS = ROOT / "tests" / "parts"
NOTES = ROOT / ".pytest_cache" / "v" / "mld" / "seconds"
PRODUCT = {"mld_core": ROOT, "ml_debugger": ROOT / "integrations"}


def git(*arguments: str) -> list[str]:
    """The lines git answers with."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def changed_files(base: str) -> list[Path]:
    """What differs from where HEAD left a commit, and what git does not know yet; files that are gone are left out."""
    (start,) = git("merge-base", base, "HEAD")
    names = {*git("diff", "--name-only", start), *git("ls-files", "--others", "--exclude-standard")}
    return [path for name in sorted(names) if (path := ROOT / name).is_file()]


def module_of(path: Path) -> str | None:
    """`mld_core.geometry.iou` of its file, if it is one of the product's."""
    for name, root in PRODUCT.items():
        if path.suffix == ".py" and path.is_relative_to(root / name):
            parts = path.relative_to(root).with_suffix("").parts
            return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return None


def imported(path: Path) -> set[str]:
    """Names of all modules that a file may import, at its top or within functions: `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    return names


def distances(changed: Iterable[str]) -> dict[str, int]:
    """Module -> steps to the nearest changed module that it imports."""
    graph = grimp.build_graph(*PRODUCT, cache_dir=str(ROOT / ".tmp" / "grimp"))
    edge = {name for name in changed if name in graph.modules}
    found, steps = dict.fromkeys(edge, 0), 0
    while edge:
        steps += 1
        edge = {up for name in edge for up in graph.find_modules_that_directly_import(name)} - found.keys()
        found |= dict.fromkeys(edge, steps)
    return found


@dataclass(order=True)
class Near:
    """A file of tests, how near it is to what was changed, and the seconds it takes."""

    distance: int
    seconds: float
    path: Path


def near_tests(changed: list[Path], seconds: dict[Path, float]) -> list[Near]:
    """Files of tests that something changed may break, nearest first."""
    tests = ROOT / "tests"
    parts = {path.stem: path for path in PARTS.rglob("*.py")}
    steps = distances(name for path in changed if (name := module_of(path)))
    rooms = {tests.joinpath(*name.split(".")[1:-1]) for path in changed if (name := module_of(path))} - {
        tests
    }
    found = []
    for path in sorted(tests.rglob("test_*.py")):
        own, used = (
            imported(path),
            {folder / "conftest.py" for folder in path.parents if folder.is_relative_to(tests)},
        )
        while more := {parts[name] for name in own if name in parts} - used:
            used |= more
            own |= {name for part in more for name in imported(part)}
        distance = min((steps[name] for name in own if name in steps), default=FAR)
        if path in changed:
            distance = CHANGED
        elif used & set(changed) or (path.parent in rooms and distance < FAR):
            distance = 0
        if distance < FAR:
            found.append(Near(distance, seconds.get(path, UNKNOWN), path))
    return sorted(found)


def noted_seconds() -> dict[Path, float]:
    """What each file of tests took, as the last run of each of its tests noted it."""
    found: dict[Path, float] = {}
    for test, took in (json.loads(NOTES.read_text()) if NOTES.exists() else {}).items():
        path = ROOT / test.split("::")[0]
        found[path] = found.get(path, 0.0) + took
    return found


def fitting(near: list[Near], budget: float) -> tuple[list[Near], list[Near]]:
    """Those that are run and those that are left: changed tests always, then the nearest while they fit."""
    run, left = [], []
    for one in near:
        if one.distance == CHANGED or one.seconds <= budget:
            budget -= one.seconds
            run.append(one)
        else:
            left.append(one)
    return run, left


def environment() -> dict[str, str]:
    """Ours, by which pytest finds the plugin that makes the workers before it has read the configuration."""
    given = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in (str(PARTS), given) if one)}


def main() -> int:
    """Run the tools and the tests; 0 if all is well."""
    options = argparse.ArgumentParser(description="lint, types and the tests nearest to what was changed")
    options.add_argument(
        "--base", default="HEAD", help="the commit to compare with (default: what is not committed)"
    )
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--list", action="store_true", help="only say which files of tests would run")
    given = options.parse_args()
    changed = changed_files(given.base)
    run, left = fitting(near_tests(changed, noted_seconds()), SECONDS * given.workers)
    names = [str(one.path.relative_to(ROOT)) for one in run]
    if given.list or not changed:
        print("\n".join(names) if changed else "nothing is changed")
        return 0
    python = [sys.executable, "-m"]
    ours = [str(path) for path in changed if path.suffix == ".py"]
    doctests = [str(path) for path in changed if module_of(path) and ">>>" in path.read_text("utf-8")]
    tools = [[*python, "ruff", "check", *ours], [*python, "ruff", "format", "--check", *ours]] if ours else []
    if doctests:
        tools += [[*python, "mypy"], [str(Path(sys.executable).with_name("lint-imports")), "--no-logo"]]
    started = [
        subprocess.Popen(tool, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for tool in tools
    ]
    failed = 0
    if names or doctests:
        spread = ["-p", "forked", "--forks"] if sys.platform == "linux" else ["--dist", "loadfile", "-n"]
        (ROOT / ".tmp" / "pytest").mkdir(parents=True, exist_ok=True)
        workers = [*spread, str(given.workers), "--basetemp", f".tmp/pytest/{os.getpid()}"]
        command = [*python, "pytest", "-q", *workers, "-m", "not heavy", *names, *doctests]
        failed = subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode
    for tool, process in zip(tools, started, strict=True):
        said = process.communicate()[0].decode()
        if process.returncode:
            failed = 1
            print(" ".join([Path(tool[0]).name, *tool[1:4]]), said, sep="\n")
    if left:
        print(f"{len(left)} more files of tests reach what was changed; make test runs them")
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
