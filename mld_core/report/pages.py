"""The page from before the app: JSON, a shell from a template, styles, scripts and plotly.js in one file.

Nothing on the page is fetched: a content security policy forbids it, and allows only the very scripts that
are in the file (by their SHA-256), so that no text of a record can run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from mld_core import __version__
from mld_core.app.file.one_file import embedded_json
from mld_core.report.comparison import comparison_content
from mld_core.report.content import report_content

try:
    import jinja2
    from plotly.offline import get_plotlyjs
except ImportError as error:
    raise ImportError(
        f'the report needs plotly and jinja2 ({error.name} is missing): pip install "ml-debugger[report]"'
    ) from error

__all__ = ["comparison_content", "page", "report_content"]

SCRIPTS = ("core.js", "plots.js", "sections.js", "matrices.js", "samples.js", "compare.js")
STYLES = ("base.css", "gallery.css", "parts.css")
TASK_SCRIPTS = {
    "detection": ("costs.js", "boxplots.js", "images.js", "viewer.js"),
    "detection3d": ("costs.js", "bev.js", "bevview.js", "scene3d.js", "errors3d.js", "curves3d.js"),
}
TASK_STYLES = {"detection": ("images.css",), "detection3d": ("scene3d.css",)}
"""What only the pages of a task carry."""

COMPARE_SCRIPTS = {
    "detection": ("compareboxes.js", "compareimages.js"),
    "detection3d": ("compareboxes.js", "compareframes.js"),
}
COMPARE_STYLES = {"detection": ("compare.css",), "detection3d": ("compare.css",)}
"""What only the pages of two results of a task carry."""


def page(content: dict[str, Any]) -> str:
    """The HTML of some content."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    task = str(content.get("task"))
    scripts, styles = TASK_SCRIPTS.get(task, ()), TASK_STYLES.get(task, ())
    if content.get("kind") == "comparison":
        scripts, styles = (*scripts, *COMPARE_SCRIPTS.get(task, ())), (*styles, *COMPARE_STYLES.get(task, ()))
    names = (*SCRIPTS, *scripts, "start.js")
    own = "\n".join(_asset(name) for name in names)
    plotly = get_plotlyjs().replace("\r\n", "\n")
    return environment.from_string(_asset("page.html.j2")).render(
        content=content,
        version=__version__,
        styles=_styles(styles),
        scripts=[plotly, own],
        hashes=[_digest(plotly), _digest(own)],
        data=embedded_json(content),
    )


def _styles(more: Sequence[str]) -> str:
    """The style sheet; the dark colours stand for a system that is dark and for the reader's own choice."""
    dark = _asset("dark.css")
    chosen = f':root[data-theme="dark"] {{\n{dark}}}'
    system = f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{\n{dark}}} }}'
    base, *others = (_asset(name) for name in (*STYLES, *more))
    return "\n".join([base, system, chosen, *others])


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()


@cache
def _asset(name: str) -> str:
    return resources.files("mld_core.report").joinpath("assets", name).read_text(encoding="utf-8")
