"""A result in front of a person: in a notebook's cell (HTML), in a terminal, in a browser."""

from __future__ import annotations

import html
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mld_core.evaluation.results.summary import Summary


def display(shown: object) -> bool:
    """Show it in the notebook that runs this; False where none does."""
    # IPython is looked up, not imported: it is there exactly when a notebook runs this.
    shell = sys.modules.get("IPython")
    kernel = shell.get_ipython() if shell is not None else None
    if kernel is None or not kernel.has_trait("kernel"):
        return False
    sys.modules["IPython.display"].display(shown)
    return True


def show_summary(summary: Summary) -> None:
    """As HTML in a notebook, else on stdout."""
    if not display(summary):
        Console().print(summary)


@dataclass(frozen=True)
class Frame:
    """A page within a cell of a notebook.

    It has no server and no address: the whole page is an attribute of the frame. It may run its own script
    (its content security policy names that one) and save files; the notebook is out of its reach.
    """

    page: str
    height: int

    def __repr__(self) -> str:
        return f"Frame({len(self.page) / 1e6:.1f} MB, {self.height} pixels high)"

    def _repr_html_(self) -> str:
        rules = 'sandbox="allow-scripts allow-downloads" style="width: 100%; border: 1px solid #8884"'
        return f'<iframe srcdoc="{html.escape(self.page)}" height="{self.height}" {rules}></iframe>'


def show_page(write: Callable[[Path], Path], height: int) -> None:
    """Show the page that `write` writes to a path: in a notebook in a frame, else in the browser."""
    path = write(Path(tempfile.mkdtemp(prefix="mld-page-")) / "page.html")
    if display(Frame(path.read_text("utf-8"), height)):
        path.unlink()
        path.parent.rmdir()
    elif not webbrowser.open(path.as_uri()):
        Console().print(f"no browser was found; the page is {path}", soft_wrap=True)
