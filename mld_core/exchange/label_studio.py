"""Label Studio: `tasks.json` to import, `config.xml` for the labelling interface; and its JSON export back.

A task's `data` holds the picture's address, the sample's id, its split, the given label and what the last
evaluation found, to sort and filter by. Its `predictions` are the given labels and what the model says; its
annotations are left to people, so that all in the export is theirs. Boxes are in percent of the picture; that
of true box k has the id `truth-k`, which it keeps when a person changes its label.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from mld_core.exchange.frames import Boxes, Frame, original_boxes, original_size, write_json
from mld_core.exchange.samples import Samples, named
from mld_core.records.store.verdict import Verdict

GIVEN = "given labels"
"""The model version under which the labels of the data set stand among the predictions."""


def write_choices(samples: Samples, class_names: list[str], folder: Path) -> None:
    """Write the two files of a pass of classification."""
    tasks = []
    for k, name in enumerate(samples.input_id):
        given, said = int(samples.label[k]), int(samples.prediction[k])
        data: dict[str, Any] = {"image": samples.media[k], "input_id": name, "split": samples.dataset_type}
        data |= {"given": named(given, class_names), **samples.findings.get(name, {})}
        guesses = [(GIVEN, given, None), (samples.model, said, float(samples.probabilities[k].max()))]
        predictions = [
            {"model_version": model, "score": score, "result": [_choice(class_names[number])]}
            for model, number, score in guesses
            if number >= 0
        ]
        tasks.append({"data": data, "predictions": predictions})
    write_json(folder / "tasks.json", tasks)
    _write_config(folder / "config.xml", "Choices", "Choice", class_names)


def write_rectangles(frames: list[Frame], class_names: list[str], folder: Path) -> None:
    """Write the two files of a pass of 2D detection.

    Raises:
        ValueError: the size of a picture was not recorded.
    """
    tasks = []
    for frame in frames:
        size = original_size(frame.row)
        if 0 in size:
            raise ValueError(
                f"the size of {frame.row['input_id']!r} was not recorded: boxes in percent need it"
            )
        data = {"image": frame.row.get("media_path") or frame.row["input_id"]}
        data |= {"input_id": frame.row["input_id"], "split": frame.dataset_type}
        given = _rectangles(frame.true, frame, size, class_names, "truth")
        said = _rectangles(frame.found, frame, size, class_names, "found")
        both = ((GIVEN, given), (frame.model, said))
        predictions = [{"model_version": name, "result": boxes} for name, boxes in both if boxes]
        tasks.append({"data": data, "predictions": predictions})
    write_json(folder / "tasks.json", tasks)
    _write_config(folder / "config.xml", "RectangleLabels", "Label", class_names)


def read_label_studio(path: Path, class_names: Sequence[str]) -> Iterator[Verdict]:
    """What people said in an export (JSON) of such a project: a verdict for each label that they gave.

    The given label again is "ok", another one "relabel"; what was skipped or drawn anew is left out.

    Raises:
        ValueError: it is no such export, or has a class the run has not.
    """
    tasks = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(tasks, list) or not all(isinstance(one, Mapping) and "data" in one for one in tasks):
        raise ValueError(f"{path}: expected Label Studio's JSON export (a list of tasks)")
    for task in tasks:
        data = task["data"]
        if not {"input_id", "split"} <= data.keys():
            raise ValueError(
                f"{path}: its tasks have no input_id and split; they were not exported from here"
            )
        given = _given(path, task, class_names)
        for annotation in task.get("annotations", ()):
            if annotation.get("was_cancelled"):
                continue
            for truth, name in _labels(annotation.get("result", ())):
                label = _number(path, name, class_names)
                before = given.get(truth)
                if truth is not None and before is None:
                    continue
                yield Verdict(
                    "ok" if label == before else "relabel",
                    str(data["split"]),
                    str(data["input_id"]),
                    truth=truth,
                    label=None if label == before else label,
                    given=before,
                    note=f"Label Studio, annotation {annotation.get('id', '')}".rstrip(),
                    author=_author(annotation.get("completed_by")),
                )


def _given(path: Path, task: Mapping[str, Any], class_names: Sequence[str]) -> dict[int | None, int]:
    """Class numbers of the given labels, by number of the true box, None for the sample."""
    name = task["data"].get("given")
    found: dict[int | None, str] = {} if name is None else {None: name}
    for one in task.get("predictions", ()):
        if one.get("model_version") == GIVEN:
            found |= dict(_labels(one["result"]))
    return {truth: _number(path, name, class_names) for truth, name in found.items()}


def _labels(result: Any) -> Iterator[tuple[int | None, str]]:
    for one in result:
        value, kind = one.get("value", {}), one.get("type")
        if kind == "choices" and len(value.get("choices", ())) == 1:
            yield None, value["choices"][0]
        elif kind == "rectanglelabels" and str(one.get("id", "")).startswith("truth-"):
            yield int(one["id"].removeprefix("truth-")), value["rectanglelabels"][0]


def _number(path: Path, name: str, class_names: Sequence[str]) -> int:
    """Of a class by its name, or by the one that an export gives where the run has none."""
    if name in class_names:
        return class_names.index(name)
    unnamed = name.removeprefix("class_")
    if unnamed != name and unnamed.isdecimal() and int(unnamed) >= len(class_names):
        return int(unnamed)
    raise ValueError(f"{path}: class {name!r}; the run's are {', '.join(class_names)}")


def _author(who: Any) -> str:
    """Name or number of the person: an export has either."""
    return str(who.get("email") or who.get("id") or "") if isinstance(who, Mapping) else str(who or "")


def _choice(name: str) -> dict[str, Any]:
    return {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [name]}}


def _rectangles(
    boxes: Boxes, frame: Frame, size: tuple[int, int], class_names: list[str], kind: str
) -> list[dict[str, Any]]:
    height, width = size
    made = []
    for k, (x1, y1, x2, y2) in enumerate(original_boxes(boxes.box, frame.row).tolist()):
        if boxes.label[k] < 0:
            continue
        value = {
            "x": 100 * x1 / width,
            "y": 100 * y1 / height,
            "width": 100 * (x2 - x1) / width,
            "height": 100 * (y2 - y1) / height,
            "rotation": 0,
            "rectanglelabels": [class_names[boxes.label[k]]],
        }
        made.append(
            {
                "id": f"{kind}-{k}",
                "from_name": "label",
                "to_name": "image",
                "type": "rectanglelabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": value,
                **({} if kind == "truth" else {"score": float(boxes.score[k])}),
            }
        )
    return made


def _write_config(path: Path, labels: str, label: str, class_names: Sequence[str]) -> None:
    view = ET.Element("View")
    ET.SubElement(view, "Image", name="image", value="$image")
    choices = ET.SubElement(view, labels, name="label", toName="image")
    for name in class_names:
        ET.SubElement(choices, label, value=name)
    ET.indent(view)
    path.write_text(ET.tostring(view, encoding="unicode") + "\n", encoding="utf-8")
