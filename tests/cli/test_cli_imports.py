"""What a command loads: nobody waits for a package that is not used."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

ANALYSIS = {"sklearn", "scipy", "joblib", "numba", "torch", "torchvision", "matplotlib", "plotly", "jinja2"}
SERVER = {"sqlalchemy", "fastapi", "uvicorn"}
TABLES = {"pandas", "duckdb"}
LISTING, READING = 55, 100
"""Modules of ours: a bound on what a command costs that does not depend on how busy the machine is."""


def loaded(*arguments, **env):
    """The modules a command has loaded when it is through."""
    code = (
        "import json, sys\nfrom mld_core.cli.main import app\n"
        f"try: app({[str(one) for one in arguments]!r})\nexcept SystemExit: pass\n"
        "print('loaded', json.dumps(list(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **env})
    return json.loads(done.stdout.rpartition("loaded ")[2])


def judge(names, without, most):
    assert without.isdisjoint(names)
    assert len([name for name in names if name.startswith(("mld_core", "ml_debugger"))]) <= most


@pytest.mark.processes
def test_help_and_ls_load_no_tables(evaluated):
    for arguments in (["--help"], ["ls", "--store", evaluated]):
        judge(loaded(*arguments), ANALYSIS | SERVER | TABLES | {"requests", "pyarrow.dataset"}, LISTING)


@pytest.mark.processes
def test_show_loads_nothing_that_evaluates(evaluated):
    names = loaded("show", "--store", evaluated)
    assert "mld_core.evaluation.results.summary" in names
    judge(names, ANALYSIS | SERVER | {"requests", "pandas", "pyarrow.compute", "pyarrow.dataset"}, READING)
    names = loaded("show", "--issues", "--store", evaluated)
    assert "mld_core.evaluation.results.result" in names
    assert "mld_core.evaluation.evaluator" not in names
    judge(names, ANALYSIS | SERVER | {"requests"}, READING)


@pytest.mark.processes
def test_what_asks_a_service_loads_no_tables():
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.send_header("MLD-Protocol", "1.3")
            self.end_headers()

        def log_message(self, *what):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{service.server_port}"
        names = loaded("ls", "--remote", MLD_API_ENDPOINT=address, MLD_API_KEY="mldbg_none")
        shown = loaded("show", MLD_API_ENDPOINT=address, MLD_API_KEY="mldbg_none")
        service.shutdown()
    for found in (names, shown):
        assert "mld_core.service.client.api" in found
        judge(found, ANALYSIS | SERVER | TABLES | {"pyarrow", "numpy", "rich"}, LISTING)
