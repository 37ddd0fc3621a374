"""What starts the processes beside a training: where none can be started it is said, and none is left behind."""

from __future__ import annotations

import multiprocessing.spawn
import os
import sys
from pathlib import Path

import pytest
from live_parts import wait_until

from mld_core import companion
from mld_core.companion import Companion
from mld_core.evaluation.live.helper import LiveHelper, LiveSettings
from mld_core.service.client.helper import UploadHelper, UploadSettings

PLACES = ("frozen", "another program", "beside itself", "no pipe that does not block")


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where no process can be started; what is there once the training's own program ran again."""
    again = tmp_path / "again"
    if request.param in {"frozen", "another program"}:
        program = tmp_path / ("python" if request.param == "frozen" else "editor")
        program.write_text(f"#!/bin/sh\ntouch {again}\n")
        program.chmod(0o755)
        monkeypatch.setattr(multiprocessing.spawn, "_python_exe", str(program))
        monkeypatch.setattr(sys, "executable", str(program))
    if request.param == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    if request.param == "beside itself":
        monkeypatch.setenv("MLD_COMPANION", "1")
    if request.param == "no pipe that does not block":
        monkeypatch.delattr(os, "set_blocking")
    return again


def test_the_program_is_not_started_again_and_it_is_said_why(place: Path, tmp_path: Path) -> None:
    live = LiveHelper(LiveSettings(str(tmp_path), "net", "v1"))
    live.sealed(tmp_path / "attempt" / "rank-0")
    live.finish()
    upload = UploadHelper(UploadSettings(str(tmp_path), "net", "v1", "a", 0, 1, "http://127.0.0.1:1"))
    upload.submit(tmp_path / "attempt" / "rank-0")
    assert live.problem()
    assert live.problem() == upload.problem() == companion.refusal()
    with pytest.raises(RuntimeError, match="mld sync"):
        upload.wait([tmp_path / "attempt" / "rank-0"], 60.0)
    upload.finish()
    assert not place.exists()


def test_without_locks_nothing_is_evaluated_beside_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    live = LiveHelper(LiveSettings(str(tmp_path), "net", "v1"))
    live.sealed(tmp_path / "attempt" / "rank-0")
    assert "locks" in live.problem()
    assert companion.refusal() == ""


def test_the_interpreter_is_the_one_multiprocessing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/editor")  # the program it is embedded in
    started = Companion("this", {}, str(tmp_path), {})
    assert wait_until(started.ended)
    started.leave()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
def test_processes_that_ended_are_not_left_as_zombies(tmp_path: Path) -> None:
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return ""

    first = Companion("this", {}, str(tmp_path), {})
    first.leave()
    pid = first.process.pid
    wait_until(lambda: state(pid) == "Z")
    Companion("this", {}, str(tmp_path), {}).leave()
    assert state(pid) == ""
