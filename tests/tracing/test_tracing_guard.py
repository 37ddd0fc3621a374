"""The guard swallows errors, tells once, counts, and lets the user stop a training."""

import io
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading

import pytest

from mld_core.tracing import guard as guard_module
from mld_core.tracing.guard import ConfigurationProblem, Guard, forget_told


@pytest.fixture(autouse=True)
def fresh():
    forget_told()
    yield
    forget_told()


def test_an_error_is_swallowed_told_once_and_counted(caplog):
    guard = Guard()
    for _ in range(3):
        with guard.catch("recording a batch", lost="the rows of that batch", rows=8) as caught:
            raise RuntimeError("boom 17")
        assert caught.failed
    assert guard.problems == {"recording a batch": 3}
    assert guard.rows_lost == 24
    messages = [r.getMessage() for r in caplog.records if r.name == "ml_debugger"]
    assert len(messages) == 1
    assert "boom 17" in messages[0]
    assert "training continues" in messages[0]
    assert "the rows of that batch" in messages[0]
    assert "recording a batch: 3x" in guard.summary()
    assert "24 rows lost" in guard.summary()
    assert 'raise RuntimeError("boom 17")' in guard.tracebacks["recording a batch"]


def test_no_error_no_trace():
    guard = Guard()
    with guard.catch("anything", rows=3) as caught:
        value = 1
    assert value == 1
    assert not caught.failed
    assert guard.rows_lost == 0
    assert guard.summary() == "no problems"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_stopping_passes_through(stop):
    guard = Guard()
    with pytest.raises(stop), guard.catch("recording"):
        raise stop
    assert guard.problems == {}


def test_one_message_per_key_across_guards_and_scopes(caplog):
    assert Guard().tell_once("ids", "ids come from the content hash")
    assert not Guard().tell_once("ids", "said again")
    assert Guard(scope="run b").tell_once("ids", "another run says it once too")
    assert [r.getMessage() for r in caplog.records] == [
        "ids come from the content hash",
        "another run says it once too",
    ]


def test_configuration_problem_reads_as_a_sentence(caplog):
    guard = Guard()
    with guard.catch("setting up", lost="all rows"):
        raise ConfigurationProblem("n_class=-1: expected a positive int; leave it out")
    assert "setting up failed: n_class=-1: expected" in caplog.text
    assert "ConfigurationProblem" not in caplog.text


def test_percent_signs_in_messages(caplog):
    Guard().tell_once("full", "the disk is 99% full: %s %d")
    assert "99% full: %s %d" in caplog.text


def test_a_broken_log_handler_does_not_raise():
    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("broken handler")

    handler = Broken()
    logging.getLogger("ml_debugger").addHandler(handler)
    try:
        guard = Guard()
        with guard.catch("recording", rows=1):
            raise ValueError("x")
        assert guard.rows_lost == 1
    finally:
        logging.getLogger("ml_debugger").removeHandler(handler)


def test_an_error_that_cannot_be_printed_is_still_swallowed():
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    guard = Guard()
    with guard.catch("recording", rows=2):
        raise Unprintable
    assert guard.rows_lost == 2


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stderr


SAY = "from mld_core.tracing.guard import Guard; Guard().tell_once('k', 'hear me'); "


@pytest.mark.processes
def test_visible_by_default_and_exactly_once():
    assert _run(SAY) == "ml_debugger: hear me\n"
    own = _run("import logging; logging.basicConfig(); " + SAY)
    assert own.count("hear me") == 1
    later = _run(SAY + "import logging; logging.basicConfig(); Guard().tell_once('k2', 'again')")
    assert later.count("again") == 1
    quiet_root = _run("import logging; logging.getLogger().setLevel(logging.ERROR); " + SAY)
    assert quiet_root.count("hear me") == 1
    silenced = _run("import logging; logging.getLogger('ml_debugger').setLevel(logging.ERROR); " + SAY)
    assert silenced == ""


def test_visible_handler_follows_a_replaced_stderr(monkeypatch):
    root = logging.getLogger()
    saved, root.handlers = root.handlers, []
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        Guard().tell_once("k", "to the new stream")
    finally:
        root.handlers = saved
    assert stream.getvalue() == "ml_debugger: to the new stream\n"


def test_pickles_with_its_counts():
    guard = Guard(scope="s")
    with guard.catch("recording", rows=5):
        raise ValueError("x")
    copy = pickle.loads(pickle.dumps(guard))
    assert copy.problems == {"recording": 1}
    assert copy.rows_lost == 5
    assert copy.summary() == guard.summary()
    with copy.catch("recording", rows=1):
        raise ValueError("y")
    assert (copy.rows_lost, guard.rows_lost) == (6, 5)


def test_counts_are_exact_under_threads():
    guard = Guard()

    def work():
        for _ in range(500):
            with guard.catch("recording", rows=2):
                raise ValueError("x")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guard.problems == {"recording": 2000}
    assert guard.rows_lost == 4000


def _child(connection, guard):
    with guard.catch("recording in a child", rows=1):
        raise ValueError("x")
    connection.send(guard.rows_lost)


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_while_another_thread_holds_the_lock():
    guard = Guard()
    held, release = threading.Event(), threading.Event()

    def hold():
        with guard_module._lock:
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(there, guard))
    child.start()
    try:
        assert here.poll(30), "the forked child hung on the parent's lock"
        assert here.recv() == 1
    finally:
        release.set()
        thread.join()
        child.join(10)


def test_count_and_report_without_a_block(caplog):
    guard = Guard()
    guard.count("labels out of range", rows=0, times=3)
    guard.report("writing a part", OSError("disk full"), lost="one part", rows=10)
    assert guard.problems == {"labels out of range": 3, "writing a part": 1}
    assert guard.rows_lost == 10
    assert "disk full" in caplog.text
