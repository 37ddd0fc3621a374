"""A COCO patch: the categories of annotations that people corrected, to lay over an annotation file.

An object with `info`, `categories` and `annotations`, a list of objects with `image_file`, `truth` (number of
the box among those of its image, in the order of the annotation file), `category_id`, `given_category_id` and
`split`; category ids count from 1, as those of `mld export`. `missing`: boxes that people say are objects
without a label, as `image_file`, `category_id`, `bbox` (x, y, width, height), `split`. Annotations whose
place is corrected have `bbox` and `given_bbox`; `removed` names those that people say hold no object, as
`image_file`, `truth`, `given_category_id`, `given_bbox`, `split`. `correct_coco` lays the same over an
annotation file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mld_core.exchange.frames import write_json
from mld_core.exchange.relabel import redrawn, relabelled, spoken_boxes
from mld_core.records.format.layout import RunKey
from mld_core.records.store.verdict import Standing, same_place


def write_patch(
    path: Path, run: RunKey, found: Iterable[Standing], class_names: Sequence[str] | None = None
) -> int:
    """Write the corrected boxes; returns their number.

    Args:
        path: The file.
        run: The run.
        found: What stands of its subjects.
        class_names: Names of the classes, in their order.
    """
    found = list(found)
    rows = [row for row in relabelled(found) if row["truth"] is not None]
    annotations = [
        {
            "image_file": row["input_id"],
            "truth": row["truth"],
            "category_id": row["label"] + 1,
            "given_category_id": None if row["given"] is None else row["given"] + 1,
            "split": row["dataset_type"],
        }
        for row in rows
    ]
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(class_names or ())]
    info = {
        "model_name": run.model_name,
        "version_name": run.version_name,
        "description": "corrected categories",
    }
    missing = [
        {
            "image_file": row["input_id"],
            "category_id": row["label"] + 1,
            "bbox": _bbox(row["box"]),
            "split": row["dataset_type"],
        }
        for row in _missing(found)
    ]
    drawn = [_drawn(row) for row in _flat(found)]
    annotations += [one for one in drawn if "bbox" in one]
    removed = [one for one in drawn if "bbox" not in one]
    document = {"info": info, "categories": categories, "annotations": annotations}
    more = {"missing": missing, "removed": removed}
    write_json(path, {**document, **{name: rows for name, rows in more.items() if rows}})
    return len(annotations) + len(missing) + len(removed)


def _flat(found: Iterable[Standing]) -> list[dict[str, Any]]:
    """What stands of the places of true boxes in images."""
    return [row for row in redrawn(found) if len(row["right"] or row["seen"] or ()) == 4]


def _drawn(row: dict[str, Any]) -> dict[str, Any]:
    given = None if row["given"] is None else row["given"] + 1
    made = {"image_file": row["input_id"], "truth": row["truth"], "given_category_id": given}
    made |= {"given_bbox": None if row["seen"] is None else _bbox(row["seen"]), "split": row["dataset_type"]}
    if row["kind"] == "nothing":
        return made
    return {
        **made,
        "category_id": given if row["label"] is None else row["label"] + 1,
        "bbox": _bbox(row["right"]),
    }


def _missing(found: Iterable[Standing]) -> list[dict[str, Any]]:
    rows = [row for row in spoken_boxes(found) if row["kind"] == "missing"]
    return [row for row in rows if len(row["box"]) == 4]


def _bbox(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]


def correct_coco(
    source: Path, target: Path, found: Iterable[Standing], class_names: Sequence[str] | None = None
) -> Laid:
    """Copy a COCO annotation file with what people said laid over it; everything else stays as it is.

    An image is the one whose id, file name, or file name without folders and ending is the sample's id. Class
    k is the category of the class's name where the run has names, else the k-th by id.

    Args:
        source: An annotation file.
        target: Where the corrected one goes; whole or not at all.
        found: What stands of the subjects of its split.
        class_names: Names of the classes, in their order.

    Returns:
        What was changed, and what was not applied, in words.

    Raises:
        ValueError: It is no COCO annotation file, or has no category of that name.
    """
    found = list(found)
    document = json.loads(source.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or not {"images", "annotations", "categories"} <= document.keys():
        raise ValueError(f"{source}: expected COCO annotations (images, annotations, categories)")
    ids = _category_ids(source, document["categories"], class_names)
    images = _images(document["images"])
    of_image: dict[Any, list[dict[str, Any]]] = {}
    for one in document["annotations"]:
        of_image.setdefault(one["image_id"], []).append(one)
    changed, skipped = 0, []
    for row in [row for row in relabelled(found) if row["truth"] is not None]:
        name, boxes = row["input_id"], of_image.get(images.get(row["input_id"]), [])
        if row["truth"] >= len(boxes):
            skipped.append(f"{name}#{row['truth']}: no such box in {source}")
        elif row["given"] is not None and boxes[row["truth"]]["category_id"] != ids[row["given"]]:
            skipped.append(
                f"{name}#{row['truth']}: the reviewer saw class {row['given']}, the file has another"
            )
        else:
            boxes[row["truth"]]["category_id"] = ids[row["label"]]
            changed += 1
    last = max((int(one["id"]) for one in document["annotations"]), default=0)
    moved, gone = 0, set()
    for row in _flat(found):
        there = of_image.get(images.get(row["input_id"]), [])
        problem = _unlike(row, there, ids, source)
        if problem:
            skipped.append(problem)
        elif row["kind"] == "nothing":
            gone.add(id(there[row["truth"]]))
        else:
            _redraw(there[row["truth"]], row, ids)
            moved += 1
    # Their numbers count the annotations as they were.
    document["annotations"] = [one for one in document["annotations"] if id(one) not in gone]
    added = 0
    for row in _missing(found):
        image = images.get(row["input_id"])
        if image is None:
            skipped.append(f"{row['input_id']}: no such image in {source}")
            continue
        bbox, added = _bbox(row["box"]), added + 1
        facts = {"area": round(bbox[2] * bbox[3], 3), "iscrowd": 0, "segmentation": []}
        one = {"id": last + added, "image_id": image, "category_id": ids[row["label"]], "bbox": bbox}
        document["annotations"].append({**one, **facts})
    write_json(target, document)
    return Laid(changed, added, moved, len(gone), skipped)


class Laid(NamedTuple):
    """What was laid over an annotation file.

    Attributes:
        changed: Categories that are others now.
        added: Boxes that were missing.
        moved: Boxes that lie elsewhere, of another category where that was said.
        removed: Boxes without an object.
        skipped: What was not applied, in words.
    """

    changed: int
    added: int
    moved: int
    removed: int
    skipped: list[str]


def _unlike(
    row: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]], ids: Sequence[Any], source: Path
) -> str:
    """Why a box of the file is not the one that the reviewer saw; empty where it is."""
    name = f"{row['input_id']}#{row['truth']}"
    if row["truth"] >= len(boxes):
        return f"{name}: no such box in {source}"
    there = boxes[row["truth"]]
    if row["given"] is not None and there["category_id"] != ids[row["given"]]:
        return f"{name}: the reviewer saw class {row['given']}, the file has another"
    x, y, width, height = there["bbox"]
    if row["seen"] is not None and not same_place(row["seen"], (x, y, x + width, y + height)):
        return f"{name}: the reviewer saw it at {_bbox(row['seen'])}, the file has it at {there['bbox']}"
    return ""


def _redraw(annotation: dict[str, Any], row: Mapping[str, Any], ids: Sequence[Any]) -> None:
    """Another place, and with it no outline: that of before does not fit it."""
    bbox = _bbox(row["right"])
    annotation.update({"bbox": bbox, "area": round(bbox[2] * bbox[3], 3), "segmentation": []})
    if row["label"] is not None:
        annotation["category_id"] = ids[row["label"]]


def _category_ids(
    source: Path, categories: Sequence[Mapping[str, Any]], names: Sequence[str] | None
) -> list[Any]:
    """Category ids by class number."""
    if names is None:
        return sorted(one["id"] for one in categories)
    by_name = {one["name"]: one["id"] for one in categories}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"{source} has no category {', '.join(map(repr, missing))}")
    return [by_name[name] for name in names]


def _images(images: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Image ids by all that a sample's id may be; what two images share names neither."""
    found: dict[str, Any] = {}
    shared: set[str] = set()
    for one in images:
        file = str(one.get("file_name", ""))
        for name in {str(one["id"]), file, Path(file).name, Path(file).stem} - {""}:
            if name in found:
                shared.add(name)
            found[name] = one["id"]
    return {name: image for name, image in found.items() if name not in shared}
