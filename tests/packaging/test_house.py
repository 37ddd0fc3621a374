"""The house's own bounds: what a reader has to hold in mind at once."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for room in (ROOT / "mld_core", ROOT / "integrations" / "ml_debugger")
    for path in room.rglob("*.py")
    if "node_modules" not in path.parts
)
MOST_LINES = 450
MOST_FILES = 16


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_longer_than_a_reader_takes_in():
    lengths = {_name(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_folder_holds_more_files_than_a_reader_keeps_apart():
    counts = Counter(_name(path.parent) for path in FILES if path.name != "__init__.py")
    assert {name: n for name, n in counts.items() if n > MOST_FILES} == {}


@pytest.mark.parametrize(
    "room", sorted({path.parent for path in FILES if path.is_relative_to(ROOT / "mld_core")})
)
def test_every_room_says_what_it_is_for(room):
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert docstring, f"{_name(room)}/__init__.py: say in up to three lines what the room is for"
