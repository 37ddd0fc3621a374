"""FiftyOne: `samples.json`, a data set with what is known of each picture as its fields.

    Dataset.from_dir("val_epoch-1", fiftyone.types.LegacyFiftyOneDataset, rel_dir="/where/pictures/lie")

`ground_truth` and `predictions` hold labels or boxes; what the last evaluation found stands beside them under
the names of its table, `suggested_label` as a label. `rel_dir` goes before paths that are not absolute: ids,
where no path was recorded. Pictures stay where they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mld_core.exchange.frames import Boxes, Frame, flags, original_boxes, original_size, write_json
from mld_core.exchange.samples import FINDINGS, Samples, named


def write_classifications(samples: Samples, class_names: list[str], folder: Path) -> None:
    """Write the file of a pass of classification."""
    made = []
    for k, name in enumerate(samples.input_id):
        given, said = int(samples.label[k]), int(samples.prediction[k])
        found = {key: samples.findings.get(name, {}).get(key) for key in FINDINGS}
        suggested = found.pop("suggested_label")
        confidence = float(samples.probabilities[k].max()) if said >= 0 else None
        labels = {
            "ground_truth": _classification(named(given, class_names)),
            "predictions": _classification(named(said, class_names), confidence),
            "suggested_label": _classification(None if suggested is None else class_names[int(suggested)]),
        }
        made.append(_sample(samples.media[k], name, samples.dataset_type, samples.model, {**labels, **found}))
    write_json(folder / "samples.json", {"samples": made})


def write_detections(frames: list[Frame], class_names: list[str], folder: Path) -> None:
    """Write the file of a pass of 2D detection.

    Raises:
        ValueError: the size of a picture was not recorded.
    """
    made = []
    for frame in frames:
        name = str(frame.row["input_id"])
        if 0 in original_size(frame.row):
            raise ValueError(f"the size of {name!r} was not recorded: FiftyOne's boxes are shares of it")
        labels = {
            "ground_truth": _detections(frame.true, frame, class_names, score=False),
            "predictions": _detections(frame.found, frame, class_names, score=True),
        }
        media = str(frame.row.get("media_path") or name)
        made.append(_sample(media, name, frame.dataset_type, frame.model, labels))
    write_json(folder / "samples.json", {"samples": made})


def _sample(media: str, name: str, split: str, model: str, fields: dict[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in fields.items() if value is not None}
    return {"filepath": media, "tags": [split], "input_id": name, "model": model, **known}


def _classification(label: str | None, confidence: float | None = None) -> dict[str, Any] | None:
    if label is None:
        return None
    return {"_cls": "Classification", "tags": [], "label": label, "confidence": confidence}


def _detections(boxes: Boxes, frame: Frame, class_names: list[str], *, score: bool) -> dict[str, Any]:
    """Boxes as x, y, width and height in shares of the picture; number k of the frame has `index` k."""
    height, width = original_size(frame.row)
    box = original_boxes(boxes.box, frame.row).clip(0, [width, height, width, height])
    shares = np.column_stack([box[:, :2], box[:, 2:] - box[:, :2]]) / [width, height, width, height]
    left_out = flags(boxes, "ignore")
    crowd = flags(boxes, "crowd")
    made = [
        {
            "_cls": "Detection",
            "tags": ["ignore"] if left_out[k] else [],
            "label": class_names[boxes.label[k]],
            "bounding_box": [float(value) for value in shares[k]],
            "confidence": float(boxes.score[k]) if score else None,
            "index": k,
            "iscrowd": bool(crowd[k]),
        }
        for k in range(len(box))
        if boxes.label[k] >= 0
    ]
    return {"_cls": "Detections", "detections": made}
