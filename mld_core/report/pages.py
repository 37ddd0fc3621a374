"""Writes the page: content to JSON, the shell from a template, styles, scripts and plotly.js inside one file.

Nothing on the page is fetched: a content security policy forbids it, and allows only the very scripts that
are in the file (by their SHA-256), so that no text of a record can run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from mld_core import __version__
from mld_core.evaluation.results.result import Result
from mld_core.report.comparison import comparison_content
from mld_core.report.content import report_content
from mld_core.views.samples import ImageFn

try:
    import jinja2
    from plotly.offline import get_plotlyjs
except ImportError as error:
    raise ImportError(
        f'the report needs plotly and jinja2 ({error.name} is missing): pip install "ml-debugger[report]"'
    ) from error

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


@dataclass(frozen=True)
class Written:
    """A page on disk.

    Attributes:
        path: The file, absolute.
        bytes: Its size.
        left_out: Sentences on what the page does not show.
    """

    path: Path
    bytes: int
    left_out: list[str] = field(default_factory=list)


def write_report(result: Result, path: str | Path, *, image_fn: ImageFn | None = None) -> Written:
    """Write the page of one result.

    Args:
        result: The result.
        path: The file; it is replaced.
        image_fn: (dataset, input_id) -> image of that sample or None, where no thumbnail was recorded (of 2D
            detections asked first: thumbnails are less sharp). Arrays (H, W), (H, W, C) or (C, H, W), uint8
            or float, or PIL images. Of a 3D detection also the points of the frame: (N, 3 to 16) floats that
            begin with x, y, z in metres in the model's frame.

    Raises:
        OSError: The file cannot be written.
    """
    return _write(report_content(result, image_fn), path)


def write_comparison(a: Result, b: Result, path: str | Path, *, image_fn: ImageFn | None = None) -> Written:
    """Write the page that compares result `a` (before) with `b` (after), two results of one task.

    Args:
        a: Before.
        b: After.
        path: The file; it is replaced.
        image_fn: As in `write_report`; of detections it is asked for the images or points of both sides.

    Raises:
        ValueError: The results are of different tasks.
        OSError: The file cannot be written.
    """
    return _write(comparison_content(a, b, image_fn), path)


def _write(content: dict[str, Any], path: str | Path) -> Written:
    target = Path(path).absolute()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} is not there; make it or give another")
    data = page(content).encode("utf-8")
    # Beside the target and renamed: a page that is open in a browser is never half there.
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return Written(target, len(data), list(content["left_out"]))


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


def embedded_json(value: Any) -> str:
    r"""JSON that may stand inside a script element: no text in it can end the element or begin a comment.

    Example:
        >>> embedded_json({"id": "</script>"})
        '{"id":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


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
