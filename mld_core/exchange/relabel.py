"""`relabel.json` and CSV: the labels that people corrected, to take into another tool or into a label file.

`relabel.json` is an object: `format` (1), `model_name`, `version_name`, `class_names` (or null), `labels`: a
list of objects with `dataset_type`, `input_id`, `truth` (number of the true box, or null), `given`, `label`,
`authors`, `at`, `note`. CSV has the same members as columns. `boxes` of relabel.json lists what was said of
predicted boxes where no true one stands: `kind` ("missing": an object of class `label`; "nothing"), `box` as
it was recorded, and the other members. `true_boxes` lists what was said of the place of true boxes: `kind`
("moved": the right place is `right`, the right class `label` where it is another one; "nothing": there is no
object), `truth`, `given`, `seen` (where the person saw it), and the other members.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mld_core.records.format.layout import RunKey
from mld_core.records.store.verdict import BOX_KINDS, Standing

FORMAT = 1
COLUMNS = ("dataset_type", "input_id", "truth", "given", "label", "authors", "at", "note")


def relabelled(found: Iterable[Standing]) -> list[dict[str, Any]]:
    """The rows of both formats: what stands as "relabel", by split and id."""
    rows = [
        {
            "dataset_type": one.subject.dataset_type,
            "input_id": one.subject.input_id,
            "truth": one.subject.truth,
            "given": one.verdict.given,
            "label": one.verdict.label,
            "authors": [heard.author for heard in one.heard if heard.says == one.verdict.says],
            "at": one.verdict.at,
            "note": one.verdict.note,
        }
        for one in found
        if one.verdict is not None and one.verdict.kind == "relabel"
    ]
    return sorted(rows, key=lambda row: (row["dataset_type"], row["input_id"], row["truth"] or 0))


def spoken_boxes(found: Iterable[Standing]) -> list[dict[str, Any]]:
    """What stands of predicted boxes without a truth, by split, id and box."""
    rows = [
        {
            "kind": one.verdict.kind,
            "dataset_type": one.subject.dataset_type,
            "input_id": one.subject.input_id,
            "box": list(one.subject.box),
            "label": one.verdict.label,
            "authors": [heard.author for heard in one.heard if heard.says == one.verdict.says],
            "at": one.verdict.at,
            "note": one.verdict.note,
        }
        for one in found
        if one.subject.box is not None and one.verdict is not None and one.verdict.kind in BOX_KINDS
    ]
    return sorted(rows, key=lambda row: (row["dataset_type"], row["input_id"], row["box"]))


def redrawn(found: Iterable[Standing]) -> list[dict[str, Any]]:
    """What stands of the places of true boxes, by split, id and number."""
    rows = [
        {
            "kind": one.verdict.kind,
            "dataset_type": one.subject.dataset_type,
            "input_id": one.subject.input_id,
            "truth": one.subject.truth,
            "given": one.verdict.given,
            "seen": None if one.verdict.seen is None else list(one.verdict.seen),
            "right": None if one.verdict.right is None else list(one.verdict.right),
            "label": one.verdict.label,
            "authors": [heard.author for heard in one.heard if heard.says == one.verdict.says],
            "at": one.verdict.at,
            "note": one.verdict.note,
        }
        for one in found
        if one.verdict is not None and one.verdict.corrects_box
    ]
    return sorted(rows, key=lambda row: (row["dataset_type"], row["input_id"], row["truth"]))


def write_relabel(
    path: Path, run: RunKey, found: Iterable[Standing], class_names: Sequence[str] | None = None
) -> int:
    """Write `relabel.json`, or CSV (labels alone) where the path ends in `.csv`; the number of labels."""
    found = list(found)
    rows, boxes, moved = relabelled(found), spoken_boxes(found), redrawn(found)
    if path.suffix.lower() == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows({**row, "authors": " ".join(row["authors"])} for row in rows)
        return len(rows)
    document = {
        "format": FORMAT,
        "model_name": run.model_name,
        "version_name": run.version_name,
        "class_names": None if class_names is None else list(class_names),
        "labels": rows,
        **({"boxes": boxes} if boxes else {}),
        **({"true_boxes": moved} if moved else {}),
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(rows)


def read_relabel(path: Path) -> list[dict[str, Any]]:
    """The labels of a `relabel.json`.

    Raises:
        ValueError: It is none, or of a newer format.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    labels = document.get("labels") if isinstance(document, Mapping) else None
    if not isinstance(labels, list):
        raise ValueError(f"{path}: expected a relabel.json (an object with 'labels')")  # noqa: TRY004
    if document.get("format") != FORMAT:
        raise ValueError(f"{path}: format {document.get('format')!r}, this version reads {FORMAT}")
    return labels


def correct_csv(
    source: Path,
    target: Path,
    labels: Mapping[str, tuple[int | None, int]],
    *,
    id_column: str,
    label_column: str,
) -> tuple[int, list[str]]:
    """Copy a CSV of labels with the corrected ones in place; everything else stays as it is.

    Args:
        source: A CSV with a header.
        target: Where the corrected one goes; whole or not at all.
        labels: id -> (label the reviewer saw or None, label that is right).
        id_column: Column of the ids.
        label_column: Column of the class numbers.

    Returns:
        How many labels were changed, and what was not applied, in words.

    Raises:
        ValueError: A column is missing.
    """
    skipped: list[str] = []
    waiting = dict(labels)
    rows: list[dict[str, str]] = []
    changed = 0
    with source.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        names = list(table.fieldnames or ())
        for wanted in (id_column, label_column):
            if wanted not in names:
                raise ValueError(
                    f"{source} has no column {wanted!r}: its columns are {', '.join(names) or 'none'}"
                )
        for row in table:
            found = waiting.pop(row[id_column], None)
            if found is not None:
                given, label = found
                if given is not None and row[label_column].strip() != str(given):
                    skipped.append(
                        f"{row[id_column]}: the reviewer saw label {given}, the file has {row[label_column]}"
                    )
                else:
                    row[label_column] = str(label)
                    changed += 1
            rows.append(row)
    skipped += [f"{name}: not in {source}" for name in waiting]
    work = target.with_name(f".{target.name}.tmp")
    with work.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, names)
        out.writeheader()
        out.writerows(rows)
    work.replace(target)
    return changed, skipped
