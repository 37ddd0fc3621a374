"""docs/errors.md quotes the program: every message on it is in the code, as it stands there."""

import ast
import re
from pathlib import Path

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
