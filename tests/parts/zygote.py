"""A process that imported the frameworks once, and forks itself for each script that a test starts.

Real processes: each has an environment, a folder and streams of its own, and ends as any script does, or is killed;
only the seconds are saved that each would spend on importing. One zygote of a kind serves all workers of a test run.
Tests that are about a start (a launcher, what is imported and when) start an interpreter.

usage: zygote.py KIND SOCKET PID    until the process PID is gone
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ranks

IMPORTED = {
    "training": (
        "lightning_script",
        "hf_script",
        "mmengine_script",
        "detector_parts",
        "ml_debugger.training",
        "mld_core.tracing.run.recorder",
        *("torch._dynamo", "pandas", "pyarrow.parquet"),  # which training and recording load when they begin
    ),
    "server": ("mld_core.service.server.run", "mld_core.cli.serve"),
    "records": ("record_writer_process", "mld_core.records.write.removal"),
}
"""Kind -> what its scripts import; where a framework is missing, nobody asks for its script."""


class Process:
    """A script in a fork of the zygote, used as `subprocess.Popen` is; what it prints is in two files.

    Args:
        script: A file, or the name of a module.
        arguments: After it.
        env: The environment, this process' own if none is given.
        errors: The file that its error stream is added to.
        kind: The zygote that has imported what it needs.
    """

    def __init__(
        self,
        script: Path | str,
        *arguments: object,
        env: dict[str, str] | None = None,
        errors: Path | None = None,
        kind: str = "training",
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mld-forked-")
        self._files = [Path(self._folder.name, "stdout"), errors or Path(self._folder.name, "stderr")]
        for file in self._files:
            file.touch()
        with socket.socket(socket.AF_UNIX) as plug:
            plug.connect(_address(kind))
            self._connection = Connection(plug.detach())
        order = {
            "argv": [str(script), *map(str, arguments)],
            "env": dict(os.environ if env is None else env),
            "cwd": os.getcwd(),
            "files": [str(path) for path in self._files],
        }
        self._connection.send(order)
        self.pid: int = self._connection.recv()
        self.returncode: int | None = None

    def wait(self, timeout: float | None = 240) -> int:
        """The exit code, -n after signal n.

        Raises:
            TimeoutExpired: It still runs.
        """
        if self.returncode is None:
            if not self._connection.poll(timeout):
                raise subprocess.TimeoutExpired("a script of the zygote", timeout or 0.0)
            self.returncode = self._connection.recv()
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def lines(self) -> Iterator[str]:
        """What it prints line by line, as it comes, until it has ended."""
        with self._files[0].open(encoding="utf-8") as file:
            begun = ""
            while True:
                ended = self.poll() is not None
                begun += file.readline()
                if begun.endswith("\n"):
                    yield begun
                    begun = ""
                elif ended:
                    return
                else:
                    time.sleep(0.002)

    @property
    def stdout(self) -> str:
        """What it printed until now."""
        return self._files[0].read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What it wrote to its error stream until now."""
        return self._files[1].read_text("utf-8", "replace")


def started(world: int, script: Path | str, *arguments: object, **env: str) -> list[Process]:
    """So many ranks with torchrun's environment, and these variables."""
    return [
        Process(script, *arguments, env={**os.environ, **env, **own}) for own in ranks.environments(world)
    ]


@functools.cache
def _address(kind: str) -> str:
    """Where the zygote of this kind and test run listens; the first who asks starts it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    place = Path(tempfile.gettempdir(), f"mld-{kind}-{run[:12]}")
    log = Path(f"{place}.log")
    with Path(f"{place}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            with log.open("w") as said:
                one = subprocess.Popen(
                    [sys.executable, __file__, kind, place, str(owner)],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                )
            while not place.exists():
                assert one.poll() is None, log.read_text()
                time.sleep(0.05)
    return str(place)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _orders(place: Path, owner: int) -> dict[str, Any] | None:
    """Serve until the owner is gone (None); in each fork, what it has to run."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}.new")
        listener.listen()
        Path(f"{place}.new").rename(place)
        listener.settimeout(1)
        while _runs(owner):
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:  # keepers that are done
                    pass
            with contextlib.suppress(TimeoutError):
                plug, _ = listener.accept()
                plug.setblocking(True)
                with Connection(plug.detach()) as asked:
                    if os.fork() == 0:
                        return _kept(asked)
    for left in (place, Path(f"{place}.lock"), Path(f"{place}.log")):
        left.unlink(missing_ok=True)
    return None


def _kept(asked: Connection) -> dict[str, Any]:
    """The order, in the process that is to follow it; its keeper tells its exit code and never returns."""
    try:
        order: dict[str, Any] = asked.recv()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            return order
        asked.send(pid)
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            signal.sigtimedwait({signal.SIGCHLD}, 1)
            if asked.poll():  # nobody says more: who asked is gone
                os.kill(pid, signal.SIGKILL)
        asked.send(os.waitstatus_to_exitcode(ended[1]))
    except (OSError, EOFError):
        os._exit(1)
    os._exit(0)


def _follow(order: dict[str, Any]) -> None:
    for number, path in enumerate(order["files"], 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = order["argv"]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in IMPORTED[sys.argv[1]]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a script that ends need not walk through what it never made: 0.7 instead of 3.3 s of CPU
    if found := _orders(Path(sys.argv[2]), int(sys.argv[3])):
        _follow(found)
