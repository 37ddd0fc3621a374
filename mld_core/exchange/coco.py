"""COCO: `annotations.json` and `detections.json`, boxes in pixels of the original image.

The records' `affine` is applied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mld_core.exchange.frames import Floats, Frame, flags, original_boxes, original_size, write_json


def write_coco(frames: list[Frame], class_names: list[str], folder: Path) -> None:
    """Write the two files of one pass."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def place(number: int, label: Any, box: Floats) -> dict[str, Any]:
        return {"image_id": number, "category_id": int(label) + 1, "bbox": _xywh(box)}

    for number, frame in enumerate(frames, start=1):
        height, width = original_size(frame.row)
        images.append({"id": number, "file_name": frame.row["input_id"], "height": height, "width": width})
        crowd, ignore = flags(frame.true, "crowd"), flags(frame.true, "ignore")
        for k, box in enumerate(original_boxes(frame.true.box, frame.row)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    **place(number, frame.true.label[k], box),
                    "area": float(np.maximum(box[2:] - box[:2], 0).prod()),
                    "iscrowd": int(crowd[k]),
                    "ignore": int(ignore[k]),
                }
            )
        results += [
            {**place(number, frame.found.label[k], box), "score": float(frame.found.score[k])}
            for k, box in enumerate(original_boxes(frame.found.box, frame.row))
        ]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(class_names)]
    whole = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "annotations.json", whole)
    write_json(folder / "detections.json", results)


def _xywh(box: Floats) -> list[float]:
    return [float(value) for value in (box[0], box[1], box[2] - box[0], box[3] - box[1])]
