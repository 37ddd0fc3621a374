"""Runs a public program of `programs.py` in a process of its own, with the lines that a user adds."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import Program

CHECKOUTS = os.environ.get("MLD_CONFORMANCE", "")
NEEDS_CHECKOUTS = pytest.mark.skipif(
    not CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
)


def _source(program: Program) -> Path:
    places = [Path(CHECKOUTS) / program.repository, Path(CHECKOUTS) / program.repository.split("/")[1]]
    for place in places:
        if (place / program.path).is_file():
            return place / program.path
    pytest.skip(f"{program.repository} is not in {CHECKOUTS}")


def _edited(program: Program, source: Path, data: Path) -> str:
    body = source.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    assert digest == program.blob, f"{source} is not the file of commit {program.commit[:12]}"
    text = _with(program.edits, source)
    return text.replace("{data}", str(data)).replace("{out}", str(data.with_name("out")))


def _with(edits: tuple[tuple[str, str], ...], source: Path) -> str:
    text = source.read_text()
    for old, new in edits:
        assert old in text, f"{source}: {old!r} is not there"
        text = text.replace(old, new)
    return text


def run(program: Program, tmp_path: Path) -> tuple[Path, Path, str]:
    """Run a program in a folder: the store it recorded to, what its spy wrote, and what it said."""
    for package in program.needs:
        pytest.importorskip(package)
    data, out, spied, home = (tmp_path / name for name in ("data", "out", "spied", "home"))
    for folder in (out, spied, home):
        folder.mkdir()
    program.data(data)
    script = tmp_path / Path(program.path).name
    source = _source(program)
    script.write_text(_edited(program, source, data))
    for name, edits in program.beside:
        (tmp_path / name).write_text(_with(edits, source.with_name(name)))
    ours = [str(Path(__file__).with_name("spy")), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours.append(str(source.parent))  # the files beside it
    env = {
        **os.environ,
        **program.env,
        "PYTHONPATH": os.pathsep.join(ours),
        "MLD_HOME": str(home),
        "MLD_SPY_OUT": str(spied),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    words = program.arguments.format(data=data, out=out).split()
    done = subprocess.run(
        [sys.executable, str(script), *words],
        cwd=out, env=env, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    said = done.stdout[-20_000:] + done.stderr[-20_000:]
    assert done.returncode == 0, said
    return home, spied, said
