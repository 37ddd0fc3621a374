"""docs/errors.md quotes the program: every message on it is in the code, as it stands there, and names its place there."""

import ast
import re
from pathlib import Path

import pytest
import typer
from data import store_factory

from ml_debugger.evaluator import Evaluator
from mld_core.cli.common import clear_errors
from mld_core.evaluation.errors import NotFoundError
from mld_core.explained import explained
from mld_core.tracing.guard import Guard

ROOT = Path(__file__).parents[2]
HOLE = "{}"


def texts(tree):
    """Every text of a module; what is filled in is a hole."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\{[^}]*\}", HOLE, node.value)


def test_messages_are_the_programs_own():
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    quoted = [line for box in re.findall(r"```text\n(.*?)```", page, re.DOTALL) for line in box.splitlines()]
    assert len(quoted) > 20
    files = [path for room in ("mld_core", "integrations") for path in (ROOT / room).rglob("*.py")]
    said = "\n".join(text for path in files for text in texts(ast.parse(path.read_text("utf-8"))))
    assert [line for line in quoted if line not in said] == []


FILLED = {
    "{}={}: expected {}.": "score_thresh=50: expected a number from 0 to 1.",
    "option {}={}: expected {}": "option risk_tolerance=5: expected a number between 0 and 1",
}
"""Messages of which all that matters is filled in."""


def test_each_message_names_its_place():
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert len(sections) >= 8
    for title, body in sections:
        place = re.sub(r"[^a-z0-9 ]", "", title.lower()).replace(" ", "-")
        quoted = [
            line for box in re.findall(r"```text\n(.*?)```", body, re.DOTALL) for line in box.splitlines()
        ]
        assert quoted
        for line in quoted:
            assert explained(FILLED.get(line, line)).endswith(f" (docs/errors.md#{place})"), line


def test_what_python_raises_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    for name in ("MLD_API_ENDPOINT", "MLD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    store_factory.StoreFactory(tmp_path).standard("net", "v1")
    with pytest.raises(LookupError, match=r"did you mean.*#nothing-there\)$"):
        Evaluator("nett", "v1").list_results()
    known = Evaluator("net", "v1")
    with pytest.raises(LookupError, match=r"evaluate with request_evaluation.*#nothing-there\)$"):
        known.get_result("none")
    with pytest.raises(ValueError, match=r"risk_tolerance=0: expected.*#thresholds\)$"):
        known.request_evaluation(options={"risk_tolerance": 0})
    with pytest.raises(ConnectionError, match=r"#the-service-does-not-answer-or-refuses\)$"):
        Evaluator("net", "v1", api_endpoint="http://127.0.0.1:1").list_results()
    monkeypatch.setenv("MLD_API_KEY", "mldbg_alone")
    with pytest.raises(ValueError, match=r"no endpoint is.*#the-service-does-not-answer-or-refuses\)$"):
        Evaluator("net", "v1").list_results()


def test_it_is_named_where_messages_are_printed(caplog, capsys):
    Guard("a test").tell_once("dropped", "records are dropped and counted: no room; training goes on")
    assert caplog.messages[-1].endswith("(docs/errors.md#full-disk)")
    with pytest.raises(typer.Exit), clear_errors():
        raise NotFoundError("there is no store at /nowhere: record a training first")
    assert "(docs/errors.md#nothing-there)" in capsys.readouterr().err
