"""`mld watch`: what a training is like, while it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mld_core.evaluation.live.figures import write_figures
from mld_core.evaluation.live.watching import COLUMNS, sparkline
from mld_core.records.format.layout import PassKey

MLD = [sys.executable, "-m", "mld_core.cli.main"]
HEARS = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "sys.argv[0] = 'mld'; from mld_core.cli.main import app; app()"
)
HEARING = [sys.executable, "-c", HEARS]
"""The command, which hears a Ctrl-C also where the tests run in the background, and ignore it."""


def row(split: str, epoch: int, **more: object) -> dict[str, object]:
    """A row as the process beside a training writes it."""
    return {
        "dataset": split,
        "n_epoch": epoch,
        "pass_no": 0,
        "attempt": "a",
        "generation": 0,
        "rows": 20,
        "task": "classification",
        "sealed_at": f"2026-11-29T10:00:{epoch:02d}",
        "state": "analysed",
        "metrics": {"accuracy": 0.5 + epoch / 10, "net_entropy_loss_mean": 1.0 - epoch / 10},
        "analysis": {
            "rows": 20,
            "of": 20,
            "wrong_labels": 3,
            "metrics": {"error_proba_auroc": 0.9},
            "categories": {"hotspot_ratio": 0.25},
            "findings": [
                {"code": "C20", "title": "Silent", "severity": 5, "counts": 4, "action": "Collect."}
            ],
        },
        "notes": [],
        **more,
    }


@pytest.fixture
def watched(tmp_path: Path, records):
    """A store with a run of three passes, the last of them without figures."""
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run()
    for epoch in range(3):
        factory.add_pass(run, "val", records.make_data(20), n_epoch=epoch)

    def write(epoch: int, **more: object) -> None:
        (attempt,) = factory.store.pass_dir(run, PassKey("val", epoch)).iterdir()
        write_figures(attempt, row("val", epoch, **more))

    write(0)
    write(1)
    write(2, state="metrics", analysis=None)
    return factory.store.root, write


def test_a_pipe_gets_one_line_for_each_pass_that_is_known_of(watched) -> None:
    store, _ = watched
    done = subprocess.run(
        [*MLD, "watch", "--once", "--store", store], capture_output=True, text=True, check=True
    )
    head, *lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert head == list(COLUMNS)
    assert [(*line[:2], line[4]) for line in lines] == [
        ("val", "0", "analysed"),
        ("val", "1", "analysed"),
        ("val", "2", "metrics"),
    ]
    found = dict(zip(head, lines[1], strict=True))
    assert (found["accuracy"], found["hotspot"], found["wrong_labels"]) == ("0.6", "0.25", "3")
    assert found["finding"] == "C20 Silent: 4"
    command = [*MLD, "watch", "net", "v1", "--once", "--json", "--store", store]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [json.loads(line)["n_epoch"] for line in told] == [0, 1, 2]


def test_lines_follow_as_passes_are_finished_and_ctrl_c_is_clean(watched) -> None:
    store, write = watched
    command = [*HEARING, "watch", "--store", str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert [process.stdout.readline()[:5] for _ in range(3)] == ["datas", "val\t0", "val\t1"]
        write(2)
        assert process.stdout.readline().startswith("val\t2\t")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()


def test_who_reads_one_line_and_goes_sees_no_error(watched) -> None:
    store, write = watched
    command = [*MLD, "watch", "--store", str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("dataset")
        process.stdout.close()
        write(2)
        process.wait(30)
        assert process.stderr.read() == ""
    finally:
        process.kill()


def test_a_terminal_gets_curves_shares_and_findings_on_a_screen_of_its_own(watched) -> None:
    store, write = watched
    master, slave = pytest.importorskip("pty").openpty()
    command = [*HEARING, "watch", "--store", str(store)]
    process = subprocess.Popen(
        command, stdout=slave, stderr=slave, env={**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    )
    shown = ""
    until = time.monotonic() + 60
    os.close(slave)
    while time.monotonic() < until and "0.7000" not in shown:
        shown += os.read(master, 65_536).decode()
    time.sleep(2.5)  # it looks twice, and nothing has changed
    write(2)
    while time.monotonic() < until and "val 2" not in shown:
        shown += os.read(master, 65_536).decode()
    process.send_signal(signal.SIGINT)
    rest = ""
    with contextlib.suppress(OSError):  # the end of the terminal
        while some := os.read(master, 65_536):
            rest += some.decode()
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()
    os.close(master)
    shown += rest
    for text in ("net v1", "accuracy", "▁▅█", "hotspot", "25.0%", "C20 Silent", "3 of 20", "Collect."):
        assert text in shown, text
    before, after = shown.split("\x1b[?1049h")[1].split("\x1b[?1049l")
    # Twice, and once more where the interrupt met the drawing; with every look it would be four times at least.
    assert before.count("net v1") <= 3, "drawn anew where something changed alone"
    assert after.count("net v1") == 1, "the last view stays on the terminal"


def test_a_curve_of_nothing_and_of_one_value() -> None:
    assert sparkline([]) == ""
    assert sparkline([None, 0.3]) == " ▁"
    assert len(sparkline([float(number) for number in range(100)])) == 40


def test_no_such_run_is_said(watched) -> None:
    done = subprocess.run(
        [*MLD, "watch", "net", "v9", "--once", "--store", watched[0]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "v9" in done.stderr


def test_an_empty_store_is_explained(tmp_path: Path) -> None:
    command = [*MLD, "watch", "--store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.strip().endswith("(docs/errors.md#nothing-there)")
