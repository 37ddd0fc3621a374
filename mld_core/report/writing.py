"""Writes the page of a result, or of two: the app in one file where its pages cover the task."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mld_core.app.file.one_file import OneFile
from mld_core.evaluation.results.result import Result
from mld_core.views.samples import ImageFn

IN_THE_APP = frozenset({"classification", "detection", "detection3d"})
"""Tasks of which the app's pages show all that the former page did, but for the map of the features."""


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


def write_report(
    result: Result, path: str | Path, *, image_fn: ImageFn | None = None, former: bool = False
) -> Written:
    """Write the page of one result: of a classification the app in one file, with every sample.

    Args:
        result: The result.
        path: The file; it is replaced.
        image_fn: (dataset, input_id) -> image of that sample or None, where no thumbnail was recorded (of 2D
            detections asked first: thumbnails are less sharp). Arrays (H, W), (H, W, C) or (C, H, W), uint8
            or float, or PIL images. Of a 3D detection also the points of the frame: (N, 3 to 16) floats that
            begin with x, y, z in metres in the model's frame.
        former: Write the page from before the app; it draws the map of the features point by point.

    Raises:
        ImportError: The extra `report` is missing, which pages of boxes and former pages need.
        NoPagesError: The app's pages are not built in this checkout.
        OSError: The file cannot be written.
    """
    target = _target(path)
    if result.task in IN_THE_APP and not former:
        made = OneFile(result, image_fn)
        return _write(target, made.page(), made.left_out)
    from mld_core.report import pages  # noqa: PLC0415  an extra

    content = pages.report_content(result, image_fn)
    return _write(target, pages.page(content), content["left_out"])


def write_comparison(a: Result, b: Result, path: str | Path, *, image_fn: ImageFn | None = None) -> Written:
    """Write the page that compares result `a` (before) with `b` (after), two results of one task.

    Args:
        a: Before.
        b: After.
        path: The file; it is replaced.
        image_fn: As in `write_report`; of detections it is asked for the images or points of both sides.

    Raises:
        ImportError: The extra `report` is missing.
        ValueError: The results are of different tasks.
        OSError: The file cannot be written.
    """
    from mld_core.report import pages  # noqa: PLC0415  an extra

    target = _target(path)
    content = pages.comparison_content(a, b, image_fn)
    return _write(target, pages.page(content), content["left_out"])


def _target(path: str | Path) -> Path:
    target = Path(path).absolute()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} is not there; make it or give another")
    return target


def _write(target: Path, page: str, left_out: Sequence[str]) -> Written:
    data = page.encode("utf-8")
    # Beside the target and renamed: a page that is open in a browser is never half there.
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return Written(target, len(data), list(left_out))
