"""Detections and truths as files that the data sets' own tools read: COCO, KITTI, nuScenes.

Each pass becomes a folder, written whole or not at all:

- coco: `annotations.json` and `detections.json`, boxes in pixels of the original image (`affine` applied).
- kitti: `label_2/`, `pred/`, `calib/` with one text file a frame, and `index.json` (number -> input id).
- nuscenes: `results.json` (a submission) and `truths.json` (the same form, with `num_pts`), in the global
  frame where `ego_pose` is recorded, else in the frame of the boxes, which `meta` says.

What the records may hold for a 3D frame: `ego_pose`, 16 numbers, the row-major transform from the frame of
the boxes to the global one, or to be applied after `lidar2ego`; and `calibration`, a JSON object with
`lidar2ego`, `lidar2cam` (4x4, LiDAR to rectified camera) and `cam2img` (3x3 or 3x4). Without `lidar2cam` the
camera sits in the LiDAR, looking ahead; without `cam2img` it has the focal length of KITTI's.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.records.format import names
from mld_core.records.format.layout import PassKey, RunKey, Store, epoch_folder
from mld_core.records.format.manifest import tmp_name
from mld_core.records.read.reader import PassSelection, select

FORMATS = ("coco", "kitti", "nuscenes")
Format = Literal["coco", "kitti", "nuscenes"]
TASK_OF = {"coco": "detection", "kitti": "detection3d", "nuscenes": "detection3d"}
NUSCENES_CLASSES = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
)
MOST_NUSCENES = 500
"""Boxes of a sample beyond which nuScenes refuses a submission; the best-scored are kept."""

AHEAD = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
"""LiDAR (x ahead, y left, z up) to camera (x right, y down, z ahead) at the same place."""

KITTI_P2 = np.array([[721.5377, 0, 609.5593, 0], [0, 721.5377, 172.854, 0], [0, 0, 1, 0.0]])
KITTI_IMAGE = (375, 1242)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """One recorded unit with its boxes.

    Attributes:
        row: its row of `samples`.
        found: its detections.
        true: its truths.
    """

    row: dict[str, Any]
    found: Boxes
    true: Boxes


@dataclass(frozen=True)
class Boxes:
    """Boxes of one frame.

    Attributes:
        box: (N, 4) or (N, 7).
        label: (N,).
        score: (N,), 1 for truths.
        velocity: (N, 2), NaN unknown.
        columns: further columns by name (truths: ignore, crowd, n_points, ...), lists of N.
    """

    box: Floats
    label: NDArray[np.int64]
    score: Floats
    velocity: Floats
    columns: dict[str, list[Any]]


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
    wanted = TASK_OF[kind]
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
    work = root / tmp_name("formats")
    work.mkdir()
    try:
        frames = list(frames_of(item))
        known = _class_names(given, frames)
        write = {"coco": _write_coco, "kitti": _write_kitti, "nuscenes": _write_nuscenes}[kind]
        write(frames, known, work)
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _folder(key: PassKey) -> str:
    last = "" if key.pass_no == 0 else f"_pass-{key.pass_no}"
    return f"{names.encode(key.dataset_type)}_{epoch_folder(key.n_epoch)}{last}"


def _class_names(given: Sequence[str] | None, frames: Sequence[Frame]) -> list[str]:
    labels = [part.label for frame in frames for part in (frame.found, frame.true)]
    count = 1 + max((int(label.max(initial=-1)) for label in labels), default=-1)
    known = [str(name) for name in given or ()]
    return known + [f"class_{k}" for k in range(len(known), count)]


# --- reading ------------------------------------------------------------------------------------------------


def frames_of(item: PassSelection) -> Iterator[Frame]:
    """The frames of a pass in order, with their boxes."""
    samples = item.table("samples").to_pylist()
    width = 7 if item.task == "detection3d" else 4
    found = _by_unit(item.table("detections") if item.has("detections") else None, "det_idx", width)
    true = _by_unit(item.table("truths") if item.has("truths") else None, "gt_idx", width)
    nothing = _boxes([], width)
    for row in samples:
        key = (row["rank_"], row["unit"])
        yield Frame(row, found.get(key, nothing), true.get(key, nothing))


def _by_unit(table: pa.Table | None, order: str, width: int) -> dict[tuple[int, int], Boxes]:
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in table.to_pylist() if table is not None else ():
        rows.setdefault((row["rank_"], row["unit"]), []).append(row)
    return {key: _boxes(sorted(part, key=lambda one: one[order]), width) for key, part in rows.items()}


def _boxes(rows: list[dict[str, Any]], width: int) -> Boxes:
    nan = [np.nan, np.nan]
    own = {"unit", "rank_", "input_id", "det_idx", "gt_idx", "label", "score", "box", "velocity"}
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ()) if name not in own}
    return Boxes(
        np.array([row["box"] for row in rows], np.float64).reshape(-1, width),
        np.array([row["label"] for row in rows], np.int64),
        np.array([row.get("score", 1.0) for row in rows], np.float64),
        np.array([row.get("velocity") or nan for row in rows], np.float64).reshape(-1, 2),
        columns,
    )


def _flags(boxes: Boxes, name: str) -> list[bool]:
    return [bool(value) for value in boxes.columns.get(name, [False] * len(boxes.label))]


# --- COCO ---------------------------------------------------------------------------------------------------


def _write_coco(frames: list[Frame], class_names: list[str], folder: Path) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, frame in enumerate(frames, start=1):
        height, width = _original_size(frame.row)
        images.append({"id": number, "file_name": frame.row["input_id"], "height": height, "width": width})
        crowd, ignore = _flags(frame.true, "crowd"), _flags(frame.true, "ignore")
        for k, box in enumerate(_original_boxes(frame.true.box, frame.row)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(frame.true.label[k]) + 1,
                    "bbox": _xywh(box),
                    "area": float(np.maximum(box[2:] - box[:2], 0).prod()),
                    "iscrowd": int(crowd[k]),
                    "ignore": int(ignore[k]),
                }
            )
        results += [
            {
                "image_id": number,
                "category_id": int(frame.found.label[k]) + 1,
                "bbox": _xywh(box),
                "score": float(frame.found.score[k]),
            }
            for k, box in enumerate(_original_boxes(frame.found.box, frame.row))
        ]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(class_names)]
    whole = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    _write_json(folder / "annotations.json", whole)
    _write_json(folder / "detections.json", results)


def _xywh(box: Floats) -> list[float]:
    return [float(value) for value in (box[0], box[1], box[2] - box[0], box[3] - box[1])]


def _affine(row: dict[str, Any]) -> Floats:
    given = row.get("affine")
    return np.array(given or [1, 0, 0, 0, 1, 0], np.float64).reshape(2, 3)


def _original_boxes(box: Floats, row: dict[str, Any]) -> Floats:
    """Boxes in pixels of the original image: the upright box around the mapped corners."""
    matrix = _affine(row)
    corners = np.stack([box[:, [0, 1]], box[:, [2, 1]], box[:, [2, 3]], box[:, [0, 3]]], axis=1)
    mapped = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([mapped.min(axis=1), mapped.max(axis=1)], axis=1) if len(box) else box


def _original_size(row: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the original image as far as the tensor covers it; 0 where unknown."""
    if not row.get("image_height") or not row.get("image_width"):
        return 0, 0
    corner = _original_boxes(np.array([[0, 0, row["image_width"], row["image_height"]]], np.float64), row)[0]
    return round(float(corner[3])), round(float(corner[2]))


# --- KITTI --------------------------------------------------------------------------------------------------


def _write_kitti(frames: list[Frame], class_names: list[str], folder: Path) -> None:
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
    _write_json(folder / "index.json", index)


def _numbers(frames: list[Frame]) -> list[str]:
    """KITTI's six digits where the ids end in them, else running numbers."""
    stems = [Path(str(frame.row["input_id"])).stem for frame in frames]
    if len(set(stems)) == len(stems) and all(re.fullmatch(r"\d{6}", stem) for stem in stems):
        return stems
    return [f"{k:06d}" for k in range(len(frames))]


def _cameras(row: dict[str, Any]) -> tuple[Floats, Floats]:
    """(4, 4) LiDAR to rectified camera and (3, 4) camera to image."""
    known = _calibration(row)
    to_camera = np.array(known.get("lidar2cam", AHEAD), np.float64).reshape(4, 4)
    given = np.array(known.get("cam2img", KITTI_P2), np.float64)
    project = np.zeros((3, 4))
    matrix = given.reshape(3, -1) if given.size in {9, 12} else given.reshape(4, 4)[:3]
    project[:, : matrix.shape[1]] = matrix
    return to_camera, project


def _calibration(row: dict[str, Any]) -> dict[str, Any]:
    text = row.get("calibration")
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(
            f"calibration of {row['input_id']!r} is no JSON ({error}); record an object"
        ) from error
    return found if isinstance(found, dict) else {}


def _kitti_lines(
    boxes: Boxes, class_names: list[str], to_camera: Floats, project: Floats, *, score: bool
) -> list[str]:
    box = boxes.box
    bottom = box[:, :3] - np.array([0, 0, 0.5]) * box[:, 5:6]
    location = bottom @ to_camera[:3, :3].T + to_camera[:3, 3]
    heading = np.stack([np.cos(box[:, 6]), np.sin(box[:, 6]), np.zeros(len(box))], axis=1)
    turned = heading @ to_camera[:3, :3].T
    rotation = np.arctan2(-turned[:, 2], turned[:, 0])
    alpha = _wrapped(rotation - np.arctan2(location[:, 0], location[:, 2]))
    image = image_boxes(box, to_camera, project)
    ignore = _flags(boxes, "ignore")
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


def image_boxes(box: Floats, to_camera: Floats, project: Floats) -> Floats:
    """(N, 4) xyxy image boxes around the corners of 3D boxes that lie before the camera; else zeros."""
    along = np.array([1, -1, -1, 1, 1, -1, -1, 1]) * 0.5
    aside = np.array([1, 1, -1, -1, 1, 1, -1, -1]) * 0.5
    up = np.array([-1, -1, -1, -1, 1, 1, 1, 1]) * 0.5
    cos, sin = np.cos(box[:, 6:7]), np.sin(box[:, 6:7])
    ahead, left = along * box[:, 4:5], aside * box[:, 3:4]
    x, y = box[:, 0:1] + ahead * cos - left * sin, box[:, 1:2] + ahead * sin + left * cos
    points = np.stack([x, y, box[:, 2:3] + up * box[:, 5:6]], axis=-1)
    seen = points @ to_camera[:3, :3].T + to_camera[:3, 3]
    before = np.asarray(seen[..., 2] > 0.1)
    flat = seen @ project[:, :3].T + project[:, 3]
    depth = np.where(before, flat[..., 2], 1.0)
    pixel = flat[..., :2] / depth[..., None]
    low = np.where(before[..., None], pixel, np.inf).min(axis=1)
    high = np.where(before[..., None], pixel, -np.inf).max(axis=1)
    made = np.concatenate([low, high], axis=1)
    return np.asarray(np.where(before.any(axis=1, keepdims=True), made, 0.0))


def _wrapped(angle: Floats) -> Floats:
    return np.asarray((angle + np.pi) % (2 * np.pi) - np.pi)


def _kitti_calibration(to_camera: Floats, project: Floats) -> str:
    def line(name: str, matrix: Floats) -> str:
        return f"{name}: {' '.join(f'{value:.12e}' for value in matrix.ravel())}\n"

    cameras = "".join(line(f"P{k}", project) for k in range(4))
    rest = line("R0_rect", np.eye(3)) + line("Tr_velo_to_cam", to_camera[:3])
    return cameras + rest + line("Tr_imu_to_velo", np.eye(4)[:3])


# --- nuScenes -----------------------------------------------------------------------------------------------


def _write_nuscenes(frames: list[Frame], class_names: list[str], folder: Path) -> None:
    known = [name.lower().replace(" ", "_").replace("-", "_") for name in class_names]
    strange = sorted({name for name in known if name not in NUSCENES_CLASSES})
    if strange:
        raise ValueError(
            f"nuScenes has no class {', '.join(strange)}; give the names by label, out of "
            f"{', '.join(NUSCENES_CLASSES)} (class_names=, --class-names)"
        )
    posed = all(frame.row.get("ego_pose") for frame in frames)
    meta = {f"use_{name}": name == "lidar" for name in ("camera", "lidar", "radar", "map", "external")}
    found, true = {}, {}
    for frame in frames:
        token = str(frame.row["input_id"])
        pose = _to_global(frame.row) if posed else np.eye(4)
        found[token] = _nuscenes_boxes(token, frame.found, known, pose, score=True)
        true[token] = _nuscenes_boxes(token, frame.true, known, pose, score=False)
    where: dict[str, Any] = {**meta, "frame": "global" if posed else "as recorded: no ego_pose is there"}
    _write_json(folder / "results.json", {"meta": where, "results": found})
    _write_json(folder / "truths.json", {"meta": where, "results": true})


def _to_global(row: dict[str, Any]) -> Floats:
    pose = np.array(row["ego_pose"], np.float64).reshape(4, 4)
    given = _calibration(row).get("lidar2ego")
    return pose if given is None else pose @ np.array(given, np.float64).reshape(4, 4)


def _nuscenes_boxes(
    token: str, boxes: Boxes, known: list[str], pose: Floats, *, score: bool
) -> list[dict[str, Any]]:
    box = boxes.box
    centre = box[:, :3] @ pose[:3, :3].T + pose[:3, 3]
    heading = np.stack([np.cos(box[:, 6]), np.sin(box[:, 6]), np.zeros(len(box))], axis=1) @ pose[:3, :3].T
    half = np.arctan2(heading[:, 1], heading[:, 0]) / 2
    flat = np.concatenate([boxes.velocity, np.zeros((len(box), 1))], axis=1) @ pose[:3, :3].T
    points = boxes.columns.get("n_points", [None] * len(box))
    ignore = _flags(boxes, "ignore")
    rows = np.argsort(-boxes.score, kind="stable")[:MOST_NUSCENES] if score else np.arange(len(box))
    made = []
    for k in rows.tolist():
        if ignore[k] or boxes.label[k] < 0:
            continue
        one: dict[str, Any] = {
            "sample_token": token,
            "translation": centre[k].tolist(),
            "size": box[k, 3:6].tolist(),
            "rotation": [float(np.cos(half[k])), 0.0, 0.0, float(np.sin(half[k]))],
            "velocity": flat[k, :2].tolist(),
            "detection_name": known[boxes.label[k]],
            "attribute_name": "",
        }
        if score:
            one["detection_score"] = float(boxes.score[k])
        elif points[k] is not None:
            one["num_pts"] = int(points[k])
        made.append(one)
    return made


def _write_json(path: Path, content: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file)
