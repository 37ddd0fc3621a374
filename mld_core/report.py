"""Writes one HTML file about a result, or about two: the app with their data embedded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from mld_core.app.file.compare_file import CompareFile
from mld_core.app.file.one_file import OneFile
from mld_core.evaluation.results.result import Result
from mld_core.views.samples import ImageFn


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
    """Write the page of one result: Evaluation and Samples with every sample or box of the last epochs.

    Args:
        result: The result.
        path: The file; it is replaced.
        image_fn: (dataset, input_id) -> image of that sample or None, where no thumbnail was recorded (of 2D
            detections asked first: thumbnails are less sharp). Arrays (H, W), (H, W, C) or (C, H, W), uint8
            or float, or PIL images. Of a 3D detection also the points of the frame: (N, 3 to 16) floats that
            begin with x, y, z in metres in the model's frame.

    Raises:
        NoPagesError: The app's pages are not built in this checkout.
        OSError: The file cannot be written.
    """
    return _write(OneFile(result, image_fn), _target(path))


def write_comparison(a: Result, b: Result, path: str | Path, *, image_fn: ImageFn | None = None) -> Written:
    """Write the page that compares result `a` (before) with `b` (after), two results of one task.

    It has Compare with every unit that changed, and the pages of `b`.

    Args:
        a: Before.
        b: After.
        path: The file; it is replaced.
        image_fn: As in `write_report`, asked about what changed first.

    Raises:
        NoPagesError: The app's pages are not built in this checkout.
        ValueError: The results are of different tasks.
        OSError: The file cannot be written.
    """
    return _write(CompareFile(b, image_fn, before=a), _target(path))


def _target(path: str | Path) -> Path:
    target = Path(path).absolute()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} is not there; make it or give another")
    return target


def _write(made: OneFile, target: Path) -> Written:
    data = made.page().encode("utf-8")
    # Beside the target and renamed: a page that is open in a browser is never half there.
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return Written(target, len(data), list(made.left_out))
