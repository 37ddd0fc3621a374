"""CVAT for images 1.1: `annotations.xml` (the labels) and `predictions.xml`; and CVAT's export back.

A sample's label is a tag of its image, a box a box with the attribute `truth`, the number of the true box, by
which what a person changed is found again. Images are named as in CVAT's task: by the path of the picture,
else by the id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element, SubElement

from mld_core.exchange.frames import Boxes, Frame, original_boxes, original_size, write_json
from mld_core.exchange.samples import Samples
from mld_core.records.store.verdict import Verdict

INDEX = "index.json"


def write_tags(samples: Samples, class_names: list[str], folder: Path) -> None:
    """Write the files of a pass of classification."""
    for file, numbers, source in (
        ("annotations.xml", samples.label, "manual"),
        ("predictions.xml", samples.prediction, "auto"),
    ):
        root = _document(class_names, "tag")
        for k, name in enumerate(samples.media):
            image = SubElement(root, "image", id=str(k), name=name)
            if numbers[k] >= 0:
                SubElement(image, "tag", label=class_names[numbers[k]], source=source)
        _write(root, folder / file)
    given = {
        name: {"input_id": one, "split": samples.dataset_type, "labels": {"": int(label)}}
        for name, one, label in zip(samples.media, samples.input_id, samples.label.tolist(), strict=True)
        if label >= 0
    }
    write_json(folder / INDEX, {"class_names": class_names, "images": given})


def write_boxes(frames: list[Frame], class_names: list[str], folder: Path) -> None:
    """Write the files of a pass of 2D detection."""
    given = {}
    for file in ("annotations.xml", "predictions.xml"):
        root = _document(class_names, "rectangle")
        for number, frame in enumerate(frames):
            height, width = original_size(frame.row)
            name = str(frame.row.get("media_path") or frame.row["input_id"])
            facts = {"id": str(number), "name": name, "width": str(width), "height": str(height)}
            image = SubElement(root, "image", facts)
            true = file == "annotations.xml"
            _add_boxes(image, frame.true if true else frame.found, frame, class_names, true=true)
            labels = {str(k): label for k, label in enumerate(frame.true.label.tolist()) if label >= 0}
            given[name] = {
                "input_id": frame.row["input_id"],
                "split": frame.dataset_type,
                "labels": labels,
            }
        _write(root, folder / file)
    write_json(folder / INDEX, {"class_names": class_names, "images": given})


def read_cvat(path: Path, index: Path, *, author: str = "") -> Iterator[Verdict]:
    """What people changed in an export ("CVAT for images 1.1") of a task made of these files.

    Only labels that differ from the given ones: CVAT does not say who looked at what and left it. An export
    names no person: `author` does.

    Args:
        path: `annotations.xml` of the export.
        index: `index.json` that was written beside the original.
        author: who says it; empty = MLD_AUTHOR, else the name of the account.

    Raises:
        ValueError: it is no such export, or has a class the run has not.
    """
    known = json.loads(index.read_text(encoding="utf-8"))
    numbers = {name: k for k, name in enumerate(known["class_names"])}
    try:
        root = ET.parse(path).getroot()  # noqa: S314 - expat refuses bombs, and reads nothing else
    except ET.ParseError as error:
        raise ValueError(f"{path}: expected CVAT's XML ({error})") from error
    if root.tag != "annotations":
        raise ValueError(f"{path}: expected CVAT for images 1.1 (an element 'annotations'), got {root.tag!r}")
    for image in root.iter("image"):
        before = known["images"].get(image.get("name"))
        for truth, name in _said(image) if before is not None else ():
            given = before["labels"].get(truth)
            if name not in numbers:
                raise ValueError(f"{path}: class {name!r}; the run's are {', '.join(numbers)}")
            if given is None or numbers[name] == given:
                continue
            yield Verdict(
                "relabel",
                before["split"],
                before["input_id"],
                truth=int(truth) if truth else None,
                label=numbers[name],
                given=given,
                note="CVAT",
                author=author,
            )


def _said(image: Element) -> Iterator[tuple[str, str]]:
    tags = image.findall("tag")
    if len(tags) == 1:
        yield "", str(tags[0].get("label"))
    for box in image.findall("box"):
        truth = {one.get("name"): one.text for one in box.findall("attribute")}.get("truth")
        if truth and truth.isdecimal():
            yield truth, str(box.get("label"))


def _add_boxes(image: Element, boxes: Boxes, frame: Frame, names: Sequence[str], *, true: bool) -> None:
    for k, corners in enumerate(original_boxes(boxes.box, frame.row).tolist()):
        if boxes.label[k] < 0:
            continue
        rounded = (f"{value:.2f}" for value in corners)
        places: dict[str, str] = dict(zip(("xtl", "ytl", "xbr", "ybr"), rounded, strict=True))
        facts = {"label": names[boxes.label[k]], "source": "manual" if true else "auto", "occluded": "0"}
        box = SubElement(image, "box", {**facts, **places, "z_order": "0"})
        said = {"truth": str(k)} if true else {"score": f"{boxes.score[k]:.4f}"}
        for name, value in said.items():
            SubElement(box, "attribute", name=name).text = value


def _document(class_names: Sequence[str], kind: str) -> Element:
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for name in class_names:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "type").text = kind
        attributes = SubElement(label, "attributes")
        for attribute in ("truth", "score") if kind == "rectangle" else ():
            one = SubElement(attributes, "attribute")
            for key, value in (("name", attribute), ("mutable", "False"), ("input_type", "text")):
                SubElement(one, key).text = value
    return root


def _write(root: Element, path: Path) -> None:
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
