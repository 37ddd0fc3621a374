"""A pytest plugin: workers that are forks of the process that has collected, so what tests import is imported once.

    PYTHONPATH=tests/parts pytest -p forked --forks 3
    python tests/parts/forked.py    # after `make test`: note in seconds.json what the files took here

Files stay whole: a worker takes the next one when it begins the last test of its own. The longest come first, by what
they took when they last ran here, in a fresh clone by what seconds.json says. Where there is no `os.fork`, or a fork
is not safe (macOS), pytest-xdist does the same with processes that each collect for themselves.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import traceback
import uuid
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import pytest
from folders import ROOT

ENDED_SECONDS = 10.0
"""After so long without a word it is asked whether a worker has ended."""

MARKED = (("slow", 10.0), ("processes", 3.0))
"""Mark -> seconds that are expected of a test that never ran here."""

FILES = Path(__file__).with_name("seconds.json")
"""File of tests -> what it took on two cores where all ran, from `NOTED` seconds on; its order is what matters."""

NOTED = 5.0

WHOLE = 100
"""From so many files on, what tests import on their way is imported before the workers are made."""

ON_THEIR_WAY = (
    *("transformers.trainer", "transformers.models.detr", "transformers.models.yolos", "accelerate"),
    *("torchmetrics.detection", "torchvision.models.detection", "ultralytics", "mmengine.runner"),
    *("lightning.pytorch", "sklearn.datasets", "scipy.optimize", "scipy.stats", "fastapi"),
)
"""As many of them as there are."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The number of workers."""
    parser.addoption("--forks", type=int, default=0, help="workers that are forks of this process")


def pytest_configure(config: pytest.Config) -> None:
    """One name for the run, by which workers share what is made once; asking for a GPU leaves CUDA alone."""
    if config.option.forks:
        os.environ["PYTEST_XDIST_TESTRUNUID"] = uuid.uuid4().hex
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


@dataclass
class Worker:
    """A fork: how to speak to it, and which tests it has begun and not ended."""

    name: str
    pid: int
    wire: Connection
    left: deque[pytest.Item] = field(default_factory=deque)


def expected(item: pytest.Item) -> float:
    """Seconds of a test that never ran here, by its marks."""
    return next((seconds for mark, seconds in MARKED if item.get_closest_marker(mark)), 0.3)


def per_file(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of each file, from those of its tests."""
    long: dict[str, float] = defaultdict(float)
    for test, took in seconds.items():
        long[test.partition("::")[0]] += took
    return long


def files_of(
    items: list[pytest.Item], seconds: dict[str, float], noted: dict[str, float]
) -> deque[list[pytest.Item]]:
    """The tests of each file, the longest file first.

    Args:
        items: All tests.
        seconds: What tests took when they last ran here.
        noted: What files took elsewhere, for those of which no test ran here.
    """
    files = defaultdict(list)
    for item in items:
        files[item.nodeid.partition("::")[0]].append(item)
    here = per_file(seconds)
    long = per_file({item.nodeid: seconds.get(item.nodeid, expected(item)) for item in items})
    long |= {file: took for file, took in noted.items() if file in files and file not in here}
    return deque(files[file] for file in sorted(files, key=lambda name: -long[name]))


def note() -> None:
    """Write what files took in the last run here; of those that did not run, what stood there stays."""
    long = json.loads(FILES.read_text("utf-8")) if FILES.exists() else {}
    long |= per_file(json.loads((ROOT / ".pytest_cache" / "v" / "mld" / "seconds").read_text("utf-8")))
    kept = {file: round(took) for file, took in long.items() if took >= NOTED and (ROOT / file).exists()}
    FILES.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", "utf-8")


def _temporary(config: pytest.Config) -> Any:
    """What makes the folders of tests; its own folder is there."""
    found: Any = config._tmp_path_factory
    found.getbasetemp()
    return found


def _work(session: pytest.Session, name: str, wire: Connection) -> None:
    """In the worker: run the files that are sent, tell the reports."""
    config = session.config
    os.environ["PYTEST_XDIST_WORKER"] = name
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()  # its files are the parent's
    capture.start_global_capturing()
    capture.suspend_global_capture(in_=True)
    terminal: Any = config.pluginmanager.getplugin("terminalreporter")
    terminal._tw._file = open(os.devnull, "w")  # noqa: SIM115 (until the end)
    temporary = _temporary(config)
    temporary._basetemp = temporary.getbasetemp() / name
    temporary._basetemp.mkdir(mode=0o700)

    class Tells:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            wire.send(("report", config.hook.pytest_report_to_serializable(config=config, report=report)))

    config.pluginmanager.register(Tells())
    numbers = wire.recv()
    while numbers:
        own = [session.items[number] for number in numbers]
        for item, after in zip(own, [*own[1:], None], strict=True):
            if after is None:
                wire.send(("next", None))
                numbers = wire.recv()
                after = session.items[numbers[0]] if numbers else None  # noqa: PLW2901
            config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            wire.send(("done", None))
    wire.send(("gone", None))


class Pool:
    """The workers of a session, and the files that none of them has yet."""

    def __init__(self, session: pytest.Session, forks: int) -> None:
        self.session = session
        _temporary(session.config)
        self.number = {item: number for number, item in enumerate(session.items)}
        seconds = session.config.cache.get("mld/seconds", {}) if session.config.cache else {}
        noted = json.loads(FILES.read_text("utf-8")) if FILES.exists() else {}
        self.files = files_of(session.items, seconds, noted)
        self.forks, self.made = min(forks, len(self.files)), 0
        self.workers: dict[Connection, Worker] = {}

    def fork(self) -> None:
        """One more worker, with its first file."""
        capture: Any = self.session.config.pluginmanager.getplugin("capturemanager")
        capture.suspend_global_capture(in_=True)  # between tests it is: what we print is seen
        ours, theirs = Pipe()
        name = f"gw{self.made}"
        self.made += 1
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for other in (ours, *self.workers):
                    other.close()
                _work(self.session, name, theirs)
                code = 0
            except BaseException:
                with suppress(OSError):
                    theirs.send(("broke", traceback.format_exc()))
            os._exit(code)
        theirs.close()
        worker = self.workers[ours] = Worker(name, pid, ours)
        self.give(worker)

    def give(self, worker: Worker) -> None:
        """The next file, or nothing more."""
        stopped = self.session.shouldfail or self.session.shouldstop
        own = self.files.popleft() if self.files and not stopped else []
        worker.left.extend(own)
        worker.wire.send([self.number[item] for item in own])

    def hear(self, worker: Worker) -> None:
        """One message of a worker; of one that is gone, that its test failed."""
        config = self.session.config
        kind, told = "gone", None
        with suppress(EOFError, ConnectionResetError):
            kind, told = worker.wire.recv()
        if kind == "gone":
            self.bury(worker)
        elif kind == "report":
            report = config.hook.pytest_report_from_serializable(config=config, data=told)
            config.hook.pytest_runtest_logreport(report=report)
        elif kind == "next":
            self.give(worker)
        elif kind == "done":
            item = worker.left.popleft()
            config.hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        else:
            raise RuntimeError(f"worker {worker.name} broke:\n{told}")

    def bury(self, worker: Worker) -> None:
        """It ended. If it was in a test, that one failed, and another worker takes what is left."""
        del self.workers[worker.wire]
        code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        if not worker.left:
            return
        item = worker.left.popleft()
        text = f"worker {worker.name} ended with {code} in this test"
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call", [], 0.0)
        self.session.config.hook.pytest_runtest_logreport(report=report)
        if worker.left:
            self.files.appendleft(list(worker.left))
            self.fork()

    def run(self) -> None:
        """Until all files are through."""
        try:
            for _ in range(self.forks):
                self.fork()
            while self.workers:
                heard = wait(list(self.workers), ENDED_SECONDS)
                for wire in heard:
                    self.hear(self.workers[wire])
                if not heard:  # the wire of one that ended may be held by a process that it started
                    for worker in list(self.workers.values()):
                        if os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                            self.bury(worker)
        finally:
            for worker in self.workers.values():
                os.kill(worker.pid, signal.SIGTERM)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """In place of pytest's own loop."""
    options = session.config.option
    if not options.forks or options.collectonly:
        return None
    if session.testsfailed and not options.continue_on_collection_errors:
        raise session.Interrupted(f"{session.testsfailed} errors during collection")
    pool = Pool(session, options.forks)
    if len(pool.files) >= WHOLE:
        for name in ON_THEIR_WAY:
            with suppress(ImportError):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # as after the collection (conftest): the workers' collectors need not walk through it
    pool.run()
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
    return True


if __name__ == "__main__":
    note()
