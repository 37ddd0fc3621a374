"""What stands in the documentation, to be run by tests: its code, and what it says is printed."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"(?:<!-- snippet: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)


def pages(*folders: str) -> list[Path]:
    """The pages in folders of docs/ ("" is docs/ itself) that hold Python, in order."""
    found = [path for folder in folders for path in sorted((DOCS / folder).glob("*.md"))]
    return [path for path in found if "```python" in path.read_text("utf-8")]


def blocks(page: Path) -> dict[str, str]:
    """Name -> code of every Python block of a page, in order; each has a name of its own."""
    found = [(match[1], match[2]) for match in _BLOCK.finditer(page.read_text("utf-8"))]
    assert all(name for name, _ in found), f"{page.name}: every ```python block needs <!-- snippet: NAME -->"
    assert len(dict(found)) == len(found), f"{page.name}: two snippets of one name"
    return dict(found)


def console(page: Path, mark: str = "run") -> list[str]:
    """The commands of the console blocks under `<!-- MARK -->`, without their comments."""
    found = re.findall(rf"<!-- {mark} -->\n```console\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    return [line.partition(" #")[0].strip() for block in found for line in block.splitlines() if line.strip()]


def not_printed(page: Path, printed: str, store: Path) -> list[str]:
    """The lines of the page's text blocks that were not printed, or not in this order; … stands for any text."""
    lines = iter(printed.replace(str(store), "~/.mld").splitlines())
    said = re.findall(r"```text\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    wanted = [line for block in said for line in block.splitlines()]
    assert wanted, f"{page.name} does not say what is printed"
    patterns = {line: re.escape(line).replace("…", ".*") for line in wanted}
    return [line for line in wanted if not any(re.search(patterns[line], one) for one in lines)]


def run(page: Path, names: dict[str, object] | None = None) -> dict[str, object]:
    """Run every Python block of a page, one after the other.

    Args:
        page: Of docs/.
        names: What the page presumes.

    Returns:
        The names that stand after it.
    """
    names = {} if names is None else names
    for name, code in blocks(page).items():
        exec(compile(code, f"{page.name}: {name}", "exec"), names)
    return names
