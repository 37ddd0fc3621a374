"""Detections and truths as files that the data sets' own tools read: COCO, KITTI, nuScenes.

Each pass becomes a folder, written whole or not at all; what is in it stands in the file of the format.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mld_core.exchange.coco import write_coco
from mld_core.exchange.frames import Frame, frames_of
from mld_core.exchange.kitti import write_kitti
from mld_core.exchange.nuscenes import write_nuscenes
from mld_core.records.format import names
from mld_core.records.format.layout import PassKey, RunKey, Store, epoch_folder
from mld_core.records.format.manifest import work_folder
from mld_core.records.read.reader import PassSelection, select

Format = Literal["coco", "kitti", "nuscenes"]
# The task whose passes a format holds, and who writes one.
FORMATS = {
    "coco": ("detection", write_coco),
    "kitti": ("detection3d", write_kitti),
    "nuscenes": ("detection3d", write_nuscenes),
}


def export_boxes(
    store: Store,
    run: RunKey,
    kind: Format,
    output_path: str | Path | None = None,
    n_epoch: int | Literal["latest"] | None = "latest",
    *,
    class_names: Sequence[str] | None = None,
) -> list[Path]:
    """Write the detections and truths of a run's passes in the form of a data set.

    Args:
        store: where the records are.
        run: the run.
        kind: "coco" (2D), "kitti" or "nuscenes" (3D).
        output_path: folder to write into, default `<model>_<version>_<kind>` here; what it holds of the same
            passes is replaced.
        n_epoch: an epoch, "latest", or None = all.
        class_names: names by label; None: those of the run.

    Returns:
        One folder for each pass.

    Raises:
        ValueError: an unknown format, a run of another task, nothing recorded, or classes nuScenes has not.
    """
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r}: expected one of {', '.join(FORMATS)}")
    found = select(store, run, n_epoch=n_epoch, passes="all" if n_epoch is None else "last")
    wanted, _ = FORMATS[kind]
    mine = [item for item in found if item.task == wanted]
    if not mine:
        tasks = sorted({item.task for item in found})
        raise ValueError(
            f"nothing to export as {kind} for model {run.model_name!r} version {run.version_name!r}, "
            f"n_epoch={n_epoch!r}: {kind} holds {wanted} passes, recorded are {', '.join(tasks) or 'none'}"
        )
    default = f"{names.encode(run.model_name)}_{names.encode(run.version_name)}_{kind}"
    root = Path(output_path).expanduser() if output_path is not None else Path.cwd() / default
    root.mkdir(parents=True, exist_ok=True)
    given = class_names if class_names is not None else store.run_info(run).get("class_names")
    return [_write_pass(item, kind, root, given) for item in mine]


def _write_pass(item: PassSelection, kind: str, root: Path, given: Sequence[str] | None) -> Path:
    target = root / _folder(item.key)
    with work_folder(root, "formats") as work:
        frames = list(frames_of(item))
        known = _class_names(given, frames)
        FORMATS[kind][1](frames, known, work)
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        work.rename(target)
    return target


def _folder(key: PassKey) -> str:
    last = "" if key.pass_no == 0 else f"_pass-{key.pass_no}"
    return f"{names.encode(key.dataset_type)}_{epoch_folder(key.n_epoch)}{last}"


def _class_names(given: Sequence[str] | None, frames: Sequence[Frame]) -> list[str]:
    labels = [part.label for frame in frames for part in (frame.found, frame.true)]
    count = 1 + max((int(label.max(initial=-1)) for label in labels), default=-1)
    known = [str(name) for name in given or ()]
    return known + [f"class_{k}" for k in range(len(known), count)]
