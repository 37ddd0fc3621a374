"""Passes as files that other tools read; what is in them stands in the file of the format.

Each pass becomes a folder, written whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from mld_core.exchange.cleanlab import write_cleanlab
from mld_core.exchange.coco import write_coco
from mld_core.exchange.cvat import write_boxes, write_tags
from mld_core.exchange.fiftyone import write_classifications, write_detections
from mld_core.exchange.frames import Frame, frames_of
from mld_core.exchange.hf_dataset import write_hf_dataset
from mld_core.exchange.kitti import write_kitti
from mld_core.exchange.label_studio import write_choices, write_rectangles
from mld_core.exchange.nuscenes import write_nuscenes
from mld_core.exchange.samples import Samples, samples_of
from mld_core.exchange.yolo import write_yolo
from mld_core.records.format import names
from mld_core.records.format.layout import PassKey, RunKey, Store, epoch_folder
from mld_core.records.format.manifest import work_folder
from mld_core.records.read.reader import PassSelection, select

Format = Literal[
    "coco", "kitti", "nuscenes", "yolo", "fiftyone", "label-studio", "cvat", "hf-dataset", "cleanlab"
]
Findings = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Split -> id -> what the last evaluation found, under the names of `samples.FINDINGS`."""

OF_SAMPLES: Final[dict[str, Callable[[Samples, list[str], Path], None]]] = {
    "fiftyone": write_classifications,
    "label-studio": write_choices,
    "cvat": write_tags,
    "hf-dataset": write_hf_dataset,
    "cleanlab": write_cleanlab,
}
OF_FRAMES: Final[dict[str, Callable[[list[Frame], list[str], Path], None]]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "fiftyone": write_detections,
    "label-studio": write_rectangles,
    "cvat": write_boxes,
}
OF_FRAMES_3D: Final[dict[str, Callable[[list[Frame], list[str], Path], None]]] = {
    "kitti": write_kitti,
    "nuscenes": write_nuscenes,
}
FORMATS: Final[dict[str, Mapping[str, Any]]] = {
    "classification": OF_SAMPLES,
    "detection": OF_FRAMES,
    "detection3d": OF_FRAMES_3D,
}
"""Who writes a pass of a task in a format."""


def export_passes(
    store: Store,
    run: RunKey,
    kind: Format,
    output_path: str | Path | None = None,
    n_epoch: int | Literal["latest"] | None = "latest",
    *,
    class_names: Sequence[str] | None = None,
    findings: Findings | None = None,
) -> list[Path]:
    """Write a run's passes in the form of another tool.

    Args:
        store: where the records are.
        run: the run.
        kind: a format that holds the run's task (`FORMATS`).
        output_path: folder to write into, default `<model>_<version>_<kind>` here; what it holds of the same
            passes is replaced.
        n_epoch: an epoch, "latest", or None = all.
        class_names: names by label; None: those of the run.
        findings: what an evaluation found of the samples, for the formats of classification that take it.

    Returns:
        One folder for each pass.

    Raises:
        ValueError: an unknown format, a run of another task, nothing recorded, or what the format lacks
            (nuScenes: other classes; YOLO, FiftyOne, Label Studio: the size of a picture).
    """
    wanted = [task for task, writers in FORMATS.items() if kind in writers]
    if not wanted:
        every = sorted({name for writers in FORMATS.values() for name in writers})
        raise ValueError(f"format {kind!r}: expected one of {', '.join(every)}")
    found = select(store, run, n_epoch=n_epoch, passes="all" if n_epoch is None else "last")
    mine = [item for item in found if item.task in wanted]
    if not mine:
        tasks = sorted({item.task for item in found})
        raise ValueError(
            f"nothing to export as {kind} for model {run.model_name!r} version {run.version_name!r}, "
            f"n_epoch={n_epoch!r}: {kind} holds {' or '.join(wanted)} passes, "
            f"recorded are {', '.join(tasks) or 'none'}"
        )
    default = f"{names.encode(run.model_name)}_{names.encode(run.version_name)}_{kind}"
    root = Path(output_path).expanduser() if output_path is not None else Path.cwd() / default
    root.mkdir(parents=True, exist_ok=True)
    given = class_names if class_names is not None else store.run_info(run).get("class_names")
    return [_write_pass(item, kind, root, given, findings or {}) for item in mine]


def _write_pass(
    item: PassSelection, kind: str, root: Path, given: Sequence[str] | None, findings: Findings
) -> Path:
    target = root / _folder(item.key)
    write = FORMATS[item.task][kind]
    with work_folder(root, "formats") as work:
        if item.task == "classification":
            samples = samples_of(item, findings.get(item.key.dataset_type))
            write(samples, _class_names(given, samples.probabilities.shape[1]), work)
        else:
            frames = list(frames_of(item))
            write(frames, _class_names(given, _count(frames)), work)
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        work.rename(target)
    return target


def _folder(key: PassKey) -> str:
    last = "" if key.pass_no == 0 else f"_pass-{key.pass_no}"
    return f"{names.encode(key.dataset_type)}_{epoch_folder(key.n_epoch)}{last}"


def _count(frames: Sequence[Frame]) -> int:
    """One more than the largest label."""
    labels = [part.label for frame in frames for part in (frame.found, frame.true)]
    return 1 + max((int(label.max(initial=-1)) for label in labels), default=-1)


def _class_names(given: Sequence[str] | None, count: int) -> list[str]:
    known = [str(name) for name in given or ()]
    return known + [f"class_{k}" for k in range(len(known), count)]
