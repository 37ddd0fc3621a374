"""`mld ui` as a process: it says its address, keeps to this machine, and says what is wrong in a line."""

import json
import os
import socket
import subprocess
import sys

import pytest
import requests
from app_parts import Client, free_port, token_of

from mld_core.evaluation.results.store import utc_now

pytestmark = pytest.mark.processes
COMMAND = [sys.executable, "-m", "mld_core.cli.main", "ui", "--no-browser"]


def _start(store, *arguments):
    environment = {**os.environ, "MLD_HOME": str(store)}
    return subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _evaluated_now(store):
    """The newest result was made a moment ago, however long the tests before took."""
    stored = {path: json.loads(path.read_text()) for path in store.root.rglob("result.json")}
    newest = max(stored, key=lambda path: stored[path]["completed_at"])
    newest.write_text(json.dumps({**stored[newest], "completed_at": utc_now()}))


def test_it_serves_the_store_on_this_machine_until_it_is_stopped(shown_store):
    _evaluated_now(shown_store)
    port = free_port()
    process = _start(shown_store.root, "--port", str(port), "--author", "eve")
    try:
        address = process.stdout.readline().strip()
        assert address.startswith(f"http://127.0.0.1:{port}/ui/?token=")
        client = Client(address.partition("/ui/")[0], token_of(address))
        assert client.session["author"] == "eve"
        assert client.session["open"]["page"] == "evaluation"  # of the run that was evaluated a moment ago
        own = socket.gethostbyname(socket.gethostname())
        if not own.startswith("127."):
            with pytest.raises(requests.ConnectionError):
                requests.get(f"http://{own}:{port}/ui/", timeout=5)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert "Traceback" not in said


def test_a_store_without_runs_opens_with_the_next_step(tmp_path):
    process = _start(tmp_path / "nothing yet")
    try:
        address = process.stdout.readline().strip()
        client = Client(address.partition("/ui/")[0], token_of(address))
        assert client.session["runs"] == 0
        assert client.session["command"]
        assert client.get("runs")["runs"] == []
        assert client.ask("evaluation").status_code == 404
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--store", "/nowhere/at/all"), "there is no store at /nowhere/at/all"),
        (("--images", "nonsense"), "expected a path with {input_id}"),
        (("--points", "nonsense"), "expected a path with {input_id}"),
        (("--points", "/tmp/{input_id}.bin", "--points-columns", "2"), "greater than or equal to 3"),
        (("--port", "PORT"), "is taken: choose another with --port"),
        (("--port", "99999"), "65535"),
        (("surplus",), "surplus"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(shown_store, arguments, said):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = _start(shown_store.root, *[one.replace("PORT", port) for one in arguments])
        _, told = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said in told
    assert "Traceback" not in told
