"""KITTI: `label_2/`, `pred/`, `calib/` with one text file a frame, and `index.json` (number -> input id)."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mld_core.evaluation.metrics.camera import image_boxes, observation_angles, projection
from mld_core.exchange.frames import Boxes, Floats, Frame, calibration, flags, frames_of, write_json
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.records.store.verdict import Standing, Verdict, same_place

AHEAD = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
"""LiDAR (x ahead, y left, z up) to camera (x right, y down, z ahead) at the same place."""

KITTI_P2 = np.array([[721.5377, 0, 609.5593, 0], [0, 721.5377, 172.854, 0], [0, 0, 1, 0.0]])


def write_kitti(frames: list[Frame], class_names: list[str], folder: Path) -> None:
    """Write the files of one pass."""
    for name in ("label_2", "pred", "calib"):
        (folder / name).mkdir()
    index = {}
    for number, frame in zip(_numbers(frames), frames, strict=True):
        to_camera, project = _cameras(frame.row)
        index[number] = frame.row["input_id"]
        truth = _kitti_lines(frame.true, class_names, to_camera, project, score=False)
        found = _kitti_lines(frame.found, class_names, to_camera, project, score=True)
        (folder / "label_2" / f"{number}.txt").write_text("".join(truth))
        (folder / "pred" / f"{number}.txt").write_text("".join(found))
        (folder / "calib" / f"{number}.txt").write_text(_kitti_calibration(to_camera, project))
    write_json(folder / "index.json", index)


def write_corrected(
    path: Path,
    store: Store,
    run: RunKey,
    found: Iterable[Standing],
    class_names: Sequence[str] | None = None,
) -> int:
    """Write the label files of frames whose true boxes people corrected, as a ZIP; the number of frames.

    `<split>/label_2/` and `<split>/index.json`: whole files of the newest records with the corrections in
    them. Boxes lie elsewhere or are of another class, those that hold no object are gone, those that lacked a
    label stand at the end. What no longer fits is named in `skipped.txt`.

    Args:
        path: The file.
        store: The store that holds the records.
        run: The run.
        found: What stands of its subjects.
        class_names: Names of the classes, in their order.
    """
    said = _corrections(found)
    skipped: list[str] = []
    count = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for split, by_id in said.items():
            item = next(iter(select(store, run, dataset_type=split, n_epoch="latest")), None)
            frames = [] if item is None else list(frames_of(item))
            names = list(class_names or ()) or [str(k) for k in range(_most(frames, by_id) + 1)]
            index = {}
            for number, frame in zip(_numbers(frames), frames, strict=True):
                rows = by_id.pop(frame.row["input_id"], None)
                if rows is None:
                    continue
                to_camera, project = _cameras(frame.row)
                boxes = corrected(frame, rows, skipped)
                lines = _kitti_lines(boxes, names, to_camera, project, score=False)
                made.writestr(f"{split}/label_2/{number}.txt", "".join(lines))
                index[number] = frame.row["input_id"]
            skipped += [f"{one}: no frame of {split!r} has this id" for one in by_id]
            made.writestr(f"{split}/index.json", json.dumps(index))
            count += len(index)
        if skipped:
            made.writestr("skipped.txt", "\n".join(skipped) + "\n")
    return count


def _corrections(found: Iterable[Standing]) -> dict[str, dict[str, list[Verdict]]]:
    """What changes 3D boxes, by split and frame."""
    said: dict[str, dict[str, list[Verdict]]] = {}
    for one in found:
        verdict = one.verdict
        if verdict is None or not (verdict.corrects_box or verdict.kind in {"relabel", "missing"}):
            continue
        box = verdict.box or verdict.right or verdict.seen
        if (verdict.truth is not None or verdict.box is not None) and (box is None or len(box) == 7):
            said.setdefault(verdict.dataset_type, {}).setdefault(verdict.input_id, []).append(verdict)
    return said


def _most(frames: Sequence[Frame], said: Mapping[str, Sequence[Verdict]]) -> int:
    labels = [int(frame.true.label.max(initial=0)) for frame in frames]
    return max([0, *labels, *(one.label or 0 for rows in said.values() for one in rows)])


def corrected(frame: Frame, said: Sequence[Verdict], skipped: list[str]) -> Boxes:
    """The true boxes of a frame with what people said of them; what does not fit goes to `skipped`."""
    box, label = frame.true.box.copy(), frame.true.label.copy()
    keep = np.ones(len(box), np.bool_)
    added: list[Verdict] = []
    for one in said:
        name = f"{one.input_id}#{one.truth}"
        if one.truth is None:
            added += [one] if one.kind == "missing" else []
        elif one.truth >= len(box):
            skipped.append(f"{name}: no such box in the newest records")
        elif (one.given is not None and label[one.truth] != one.given) or (
            one.seen is not None and not same_place(one.seen, box[one.truth].tolist())
        ):
            skipped.append(f"{name}: the newest records have another box or class than the reviewer saw")
        elif one.kind == "nothing":
            keep[one.truth] = False
        else:
            box[one.truth] = box[one.truth] if one.right is None else one.right
            label[one.truth] = label[one.truth] if one.label is None else one.label
    more = np.array([one.box for one in added], np.float64).reshape(-1, box.shape[1])
    columns = {
        key: [value for value, kept in zip(values, keep, strict=True) if kept] + [None] * len(added)
        for key, values in frame.true.columns.items()
    }
    nothing = np.full((len(added), 2), np.nan)
    return Boxes(
        np.concatenate([box[keep], more]),
        np.concatenate([label[keep], np.array([one.label for one in added], np.int64)]),
        np.ones(int(keep.sum()) + len(added)),
        np.concatenate([frame.true.velocity[keep], nothing]),
        columns,
    )


def _numbers(frames: list[Frame]) -> list[str]:
    """KITTI's six digits where the ids end in them, else running numbers."""
    stems = [Path(str(frame.row["input_id"])).stem for frame in frames]
    if len(set(stems)) == len(stems) and all(re.fullmatch(r"\d{6}", stem) for stem in stems):
        return stems
    return [f"{k:06d}" for k in range(len(frames))]


def _cameras(row: dict[str, Any]) -> tuple[Floats, Floats]:
    """(4, 4) LiDAR to rectified camera and (3, 4) camera to image."""
    known = calibration(row)
    to_camera = np.array(known.get("lidar2cam", AHEAD), np.float64).reshape(4, 4)
    given = np.array(known.get("cam2img", KITTI_P2), np.float64)
    return to_camera, projection(given.reshape(3, -1) if given.size in {9, 12} else given.reshape(4, 4))


def _kitti_lines(
    boxes: Boxes, class_names: list[str], to_camera: Floats, project: Floats, *, score: bool
) -> list[str]:
    box = boxes.box
    bottom = box[:, :3] - np.array([0, 0, 0.5]) * box[:, 5:6]
    location = bottom @ to_camera[:3, :3].T + to_camera[:3, 3]
    rotation, alpha = observation_angles(box, to_camera)
    image = image_boxes(box, to_camera, project)
    ignore = flags(boxes, "ignore")
    lines = []
    for k in range(len(box)):
        name = "DontCare" if ignore[k] and boxes.label[k] < 0 else class_names[boxes.label[k]]
        hidden = boxes.columns.get("occlusion", [None] * len(box))[k]
        cut = boxes.columns.get("truncation", [None] * len(box))[k]
        numbers = [alpha[k], *image[k], box[k, 5], box[k, 3], box[k, 4], *location[k], rotation[k]]
        numbers += [boxes.score[k]] if score else []
        first = f"{name.replace(' ', '_')} {-1 if score else cut or 0:g} {-1 if score else int(hidden or 0)}"
        lines.append(f"{first} {' '.join(f'{value:.6f}' for value in numbers)}\n")
    return lines


def _kitti_calibration(to_camera: Floats, project: Floats) -> str:
    def line(name: str, matrix: Floats) -> str:
        return f"{name}: {' '.join(f'{value:.12e}' for value in matrix.ravel())}\n"

    cameras = "".join(line(f"P{k}", project) for k in range(4))
    rest = line("R0_rect", np.eye(3)) + line("Tr_velo_to_cam", to_camera[:3])
    return cameras + rest + line("Tr_imu_to_velo", np.eye(4)[:3])
