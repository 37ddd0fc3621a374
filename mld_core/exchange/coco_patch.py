"""A COCO patch: the categories of annotations that people corrected, to lay over an annotation file.

An object with `info`, `categories` and `annotations`, a list of objects with `image_file`, `truth` (number of
the box among those of its image, in the order of the annotation file), `category_id`, `given_category_id` and
`split`; category ids count from 1, as those of `mld export`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mld_core.exchange.frames import write_json
from mld_core.exchange.relabel import relabelled
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
    write_json(path, {"info": info, "categories": categories, "annotations": annotations})
    return len(annotations)
