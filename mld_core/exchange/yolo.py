"""YOLO: `labels/` and `predictions/` with one text file a picture, `data.yaml`, `index.json` (file -> id).

A line is `class x y width height`, the box's centre and size as shares of the picture's, in predictions with
the score behind. Pictures stay where they are: `index.json` says which is whose.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mld_core.exchange.frames import Boxes, Frame, flags, original_boxes, original_size, write_json


def write_yolo(frames: list[Frame], class_names: list[str], folder: Path) -> None:
    """Write the files of one pass.

    Raises:
        ValueError: the size of a picture was not recorded.
    """
    for name in ("labels", "predictions"):
        (folder / name).mkdir()
    index = {}
    for stem, frame in zip(_stems(frames), frames, strict=True):
        if 0 in original_size(frame.row):
            raise ValueError(
                f"the size of {frame.row['input_id']!r} was not recorded: YOLO's boxes are shares of it"
            )
        index[stem] = frame.row["input_id"]
        (folder / "labels" / f"{stem}.txt").write_text("".join(_lines(frame.true, frame, score=False)))
        (folder / "predictions" / f"{stem}.txt").write_text("".join(_lines(frame.found, frame, score=True)))
    write_json(folder / "index.json", index)
    # JSON strings are YAML strings, whatever is in a name.
    names = "".join(f"  {k}: {json.dumps(name)}\n" for k, name in enumerate(class_names))
    places = "train: images\nval: images\n"  # beside this file, since no `path` is named
    (folder / "data.yaml").write_text(f"{places}names:\n{names}", encoding="utf-8")


def _stems(frames: list[Frame]) -> list[str]:
    """The pictures' own names where they differ, else running numbers."""
    stems = [Path(str(frame.row.get("media_path") or frame.row["input_id"])).stem for frame in frames]
    return stems if len(set(stems)) == len(stems) else [f"{k:06d}" for k in range(len(frames))]


def _lines(boxes: Boxes, frame: Frame, *, score: bool) -> list[str]:
    height, width = original_size(frame.row)
    box = original_boxes(boxes.box, frame.row).clip(0, [width, height, width, height])
    shares = np.column_stack([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]])
    shares /= [width, height, width, height]
    left_out = flags(boxes, "ignore")
    lines = []
    for k in range(len(box)):
        if left_out[k] or boxes.label[k] < 0:
            continue
        numbers = [*shares[k], *([boxes.score[k]] if score else [])]
        lines.append(f"{boxes.label[k]} {' '.join(f'{value:.6f}' for value in numbers)}\n")
    return lines
