"""A COCO patch: the categories of annotations that people corrected, to lay over an annotation file.

An object with `info`, `categories` and `annotations`, a list of objects with `image_file`, `truth` (number of
the box among those of its image, in the order of the annotation file), `category_id`, `given_category_id` and
`split`; category ids count from 1, as those of `mld export`. `missing`: boxes that people say are objects
without a label, as `image_file`, `category_id`, `bbox` (x, y, width, height), `split`. `correct_coco` lays
the same over an annotation file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mld_core.exchange.frames import write_json
from mld_core.exchange.relabel import relabelled, spoken_boxes
from mld_core.records.format.layout import RunKey
from mld_core.records.store.verdicts import Standing


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
    document = {"info": info, "categories": categories, "annotations": annotations}
    write_json(path, {**document, **({"missing": missing} if missing else {})})
    return len(annotations) + len(missing)


def _missing(found: Iterable[Standing]) -> list[dict[str, Any]]:
    rows = [row for row in spoken_boxes(found) if row["kind"] == "missing"]
    return [row for row in rows if len(row["box"]) == 4]


def _bbox(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]


def correct_coco(
    source: Path, target: Path, found: Iterable[Standing], class_names: Sequence[str] | None = None
) -> tuple[int, int, list[str]]:
    """Copy a COCO annotation file with what people said laid over it; everything else stays as it is.

    An image is the one whose id, file name, or file name without folders and ending is the sample's id. Class
    k is the category of the class's name where the run has names, else the k-th by id.

    Args:
        source: An annotation file.
        target: Where the corrected one goes; whole or not at all.
        found: What stands of the subjects of its split.
        class_names: Names of the classes, in their order.

    Returns:
        How many categories were changed, how many boxes added, and what was not applied, in words.

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
    return changed, added, skipped


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
