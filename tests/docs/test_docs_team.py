"""The README's "For a team": its three commands, run as they stand there, in a shell, from an empty folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason='the server is not installed: pip install "ml-debugger[server]"')
pytest.importorskip("torch")

README = Path(__file__).parents[2] / "README.md"


def block(name: str, language: str) -> str:
    """The code block under `<!-- snippet: name -->`."""
    found = re.search(
        rf"<!-- snippet: {name} -->\n```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL
    )
    assert found, f"README.md has no snippet {name!r}"
    return found[1]


TRAIN = """
import torch
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
train_loader = [(torch.randn(2, 4), torch.tensor([0, 1]), ["a", "b"]), (torch.randn(1, 4), torch.tensor([2]), ["c"])]
"""


@pytest.mark.processes
def test_three_commands_lead_to_a_run_at_the_service(tmp_path):
    serve, export, train = (line.partition("#")[0].strip() for line in block("team", "console").splitlines())
    assert (serve, train) == ("mld serve", "python train.py")
    (tmp_path / "train.py").write_text(TRAIN + block("plain", "python"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLD_")}
    env |= {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "MLD_UPLOAD_LINGER": "20", "MLD_SERVER_PORT": "0"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            ["bash", "-c", f"exec {serve}"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=tmp_path,
        )
    try:
        printed = ""
        while "first-key" not in printed:
            line = server.stdout.readline()
            assert line, (tmp_path / "server.log").read_text()
            printed += line
        # On a terminal the two lines are printed; anywhere else they are in a file that only its owner reads.
        lines = (tmp_path / ".mld-server" / "first-key").read_text()
        exports = re.findall(r"export (MLD_\w+)=(\S+)", lines)
        assert [name for name, _ in exports] == re.findall(r"(MLD_\w+)=", export)
        shell = "; ".join(f"export {name}={value}" for name, value in exports)

        def run(command: str) -> str:
            done = subprocess.run(
                ["bash", "-ec", f"{shell}; {command}"],
                env=env,
                capture_output=True,
                text=True,
                cwd=tmp_path,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stderr + done.stdout
            return done.stdout

        run(train)
        passes: list[dict[str, object]] = []
        until = time.monotonic() + 30
        while len(passes) < 5 and time.monotonic() < until:
            passes = json.loads(run("sleep 0.5; mld ls MyModel v1 --remote --json"))
        assert [(one["dataset"], one["epoch"], one["rows"]) for one in passes] == [
            ("train", e, 3) for e in range(5)
        ]
        assert {one["state"] for one in passes} == {"sealed"}
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
        server.stdout.close()
