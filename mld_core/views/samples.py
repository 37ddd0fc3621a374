"""The worst samples of each code: which they are, what the model said of them, and what they look like."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.metrics.classification import log_probabilities
from mld_core.records.format.layout import RunKey
from mld_core.records.format.vectors import is_vector, to_numpy
from mld_core.records.read.reader import PassSelection, select
from mld_core.records.store.png import encode_png
from mld_core.views.tables import CONFIDENT, class_label, plain
from mld_core.views.units import PassUnits, rounded

PER_GROUP = 12
ALL_GROUP = 24
MAX_CODES = 20
TOP_CLASSES = 5
NEIGHBOURS = 5
LONG_SIDE = 64

ImageFn = Callable[[str, str], Any]
"""(dataset, input_id) -> the image of a sample, or None."""

_COLUMNS = (
    *("unit_id", "input_id", "gt", "prediction", "confidence", "is_error", "error_code", "error_proba"),
    *("category", "projected_category", "diagnosis", "severity", "recommended_action", "label_quality"),
    *("suggested_label", "neighbour_ids", "local_error_rate", "loss"),
)


def worst_order(units: PassUnits) -> NDArray[np.int64]:
    """Row numbers, worst first, in the order of `get_issues`: severity, error probability, loss, unit."""
    keys = [np.nan_to_num(units.floats(name), nan=-np.inf) for name in ("severity", "error_proba", "loss")]
    return np.lexsort((np.arange(units.rows), -keys[2], -keys[1], -keys[0]))


def groups(units: PassUnits, codes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The groups of the gallery with their worst rows: all errors, categories, diagnoses, error codes."""
    order = worst_order(units)
    wrong = units.errors[order] == 1
    made = [_group("all", "all errors", "Overview", order[wrong], ALL_GROUP)]
    sure = wrong & (units.floats("confidence")[order] >= CONFIDENT)
    made.append(
        _group("sure", f"wrong at confidence {CONFIDENT} or more", "Overview", order[sure], PER_GROUP)
    )
    for name in reversed(CATEGORIES[2:]):
        inside = order[units.category[order] == name]
        made.append(_group(name, name.replace("_", " "), "Issue categories", inside, PER_GROUP))
    made += _diagnosis_groups(units, order)
    texts = np.asarray([text or "" for text in units.texts("error_code")], np.str_)[order]
    for row in codes[:MAX_CODES]:
        inside = order[(texts == row["code"]) & wrong]
        title = f"{row['code']}: {row['truth']} taken for {row['said']}"
        made.append(_group(row["code"], title, "Error codes", inside, PER_GROUP))
    return [one for one in made if one["rows"]]


def _diagnosis_groups(units: PassUnits, order: NDArray[np.int64]) -> list[dict[str, Any]]:
    if not units.has("diagnosis"):
        return []
    lists = units.column("diagnosis").combine_chunks()
    rows = np.asarray(pc.list_parent_indices(lists))
    values = pc.list_flatten(lists).to_pylist()
    member: dict[str, list[int]] = {}
    for row, code in zip(rows.tolist(), values, strict=True):
        member.setdefault(code, []).append(row)
    rank = np.empty(units.rows, np.int64)
    rank[order] = np.arange(units.rows)
    made = []
    for entry in sorted(
        (BY_CODE[code] for code in member if code in BY_CODE), key=lambda e: (-e.severity, e.code)
    ):
        own = np.asarray(member[entry.code])
        title = f"{entry.code}: {entry.title}"
        made.append(_group(entry.code, title, "Diagnoses", own[np.argsort(rank[own])], PER_GROUP))
    return made


def _group(key: str, title: str, kind: str, rows: NDArray[np.int64], limit: int) -> dict[str, Any]:
    return {"key": key, "title": title, "kind": kind, "n": len(rows), "rows": rows[:limit].tolist()}


def cards(units: PassUnits, rows: Sequence[int], names: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """What each card shows, by row number; probabilities are added where the logits are still stored."""
    found = units.take(rows, _COLUMNS)
    near = neighbour_labels(
        units, {one for card in found for one in (card["neighbour_ids"] or [])[:NEIGHBOURS]}
    )
    tops = top_classes(units.records, rows)
    made = {}
    for row, card in zip(rows, found, strict=True):
        top = tops.get(row, [])
        made[str(row)] = {
            "id": str(card["input_id"]),
            "truth": None if card["gt"] is None else class_label(card["gt"], names),
            "said": class_label(-1 if card["prediction"] is None else card["prediction"], names),
            "wrong": card["is_error"],
            "confidence": plain(card["confidence"]),
            "error_proba": plain(card["error_proba"]),
            "code": card["error_code"],
            "category": card["category"] or card["projected_category"],
            "diagnosis": card["diagnosis"] or [],
            "action": card["recommended_action"],
            "suggested": _suggestion(card, names),
            "top": [
                {"name": class_label(number, names), "p": p, "truth": number == card["gt"]}
                for number, p in top
            ],
            "near": [
                {
                    "id": one,
                    "truth": class_label(near.get(one, -1), names) if one in near else None,
                }
                for one in (card["neighbour_ids"] or [])[:NEIGHBOURS]
            ],
        }
    return made


def _suggestion(card: Mapping[str, Any], names: Sequence[str] | None) -> str | None:
    """The more plausible label, where the label is in doubt (diagnosis C01)."""
    if "C01" not in (card["diagnosis"] or []) or card["suggested_label"] in {None, card["gt"]}:
        return None
    return class_label(card["suggested_label"], names)


def neighbour_labels(units: PassUnits, ids: set[str]) -> dict[str, int]:
    """Labels of some input ids of the pass."""
    if not ids:
        return {}
    inside = pc.is_in(units.column("input_id"), pa.array(sorted(ids), pa.string()))
    rows = np.flatnonzero(np.asarray(inside.to_numpy(zero_copy_only=False), np.bool_))
    return {
        str(one["input_id"]): -1 if one["gt"] is None else one["gt"]
        for one in units.take(rows.tolist(), ["input_id", "gt"])
    }


def top_classes(records: PassSelection | None, rows: Iterable[int]) -> dict[int, list[tuple[int, float]]]:
    """The `TOP_CLASSES` largest probabilities of some rows, from the stored logits."""
    wanted = np.unique(np.fromiter(rows, np.int64))
    if records is None or not records.has("vectors"):
        return {}
    if "logits" not in [field.name for field in records.schema("vectors") if is_vector(field)]:
        return {}
    made: dict[int, list[tuple[int, float]]] = {}
    start = 0
    for batch in records.batches("vectors", ["logits"], 16_384):
        inside = wanted[(wanted >= start) & (wanted < start + batch.num_rows)]
        if len(inside):
            part = pa.Table.from_batches([batch]).take(pa.array(inside - start))
            logits = np.asarray(to_numpy(part.column(0), batch.schema.field(0)), np.float64)
            for row, values in zip(inside.tolist(), logits, strict=True):
                if np.isfinite(values).all():
                    made[row] = _top(stated(values, sigmoid=records.sigmoid))
        start += batch.num_rows
    return made


def stated(logits: NDArray[np.float64], *, sigmoid: bool) -> NDArray[np.float64]:
    """(K,) probabilities of (K,) finite logits: softmax, or each class's own sigmoid.

    Example:
        >>> stated(np.array([1.0, 1.0]), sigmoid=False).round(3).tolist()
        [0.5, 0.5]
    """
    return np.asarray(np.exp(log_probabilities(logits[None], sigmoid=sigmoid))[0])


def _top(p: NDArray[np.float64]) -> list[tuple[int, float]]:
    best = np.argsort(-p, kind="stable")[:TOP_CLASSES]
    return [(int(one), value or 0.0) for one, value in zip(best, rounded(p[best]), strict=True)]


# --- images -------------------------------------------------------------------------------------------------


def stored_images(units: PassUnits, ids: set[str]) -> dict[str, bytes]:
    """Thumbnails of some input ids of the split, from the newest pass of the run that has them."""
    result, store = units.result, units.result.store
    run = RunKey(result.model_name, result.version_name)
    if not store.run_dir(run).is_dir():
        return {}
    found: dict[str, bytes] = {}
    wanted = pa.array(sorted(ids), pa.string())
    for one in select(store, run, dataset_type=units.dataset, n_epoch=None, passes="all"):
        if not one.has("media"):
            continue
        for batch in one.batches("media", ["input_id", "png"], 4_096):
            table = pa.Table.from_batches([batch])
            hit = table.filter(pc.is_in(table["input_id"], wanted)).to_pydict()
            found.update({key: png for key, png in zip(hit["input_id"], hit["png"], strict=True) if png})
    return found


def asked_images(units: PassUnits, ids: Iterable[str], image_fn: ImageFn) -> dict[str, bytes]:
    """Thumbnails from the caller's `image_fn`."""
    images = {one: image_fn(units.dataset, one) for one in ids}
    return {one: encode_png(small(np.asarray(image))) for one, image in images.items() if image is not None}


def small(image: NDArray[Any], long_side: int = LONG_SIDE) -> NDArray[np.uint8]:
    """At most `long_side` pixels on the longer side, by averaging whole blocks; uint8.

    Args:
        image: (H, W), (H, W, C) or (C, H, W), C = 1, 3 or 4; uint8, or float in [0, 1] (others: stretched).
        long_side: pixels.

    Example:
        >>> small(np.ones((128, 64))).shape
        (64, 32, 1)
    """
    if image.ndim == 3 and image.shape[-1] not in {1, 3, 4}:
        image = np.moveaxis(image, 0, -1)
    values = (image[:, :, None] if image.ndim == 2 else image).astype(np.float32)
    if image.dtype != np.uint8:
        values = np.nan_to_num(values)
        low, high = float(values.min()), float(values.max())
        values = 255 * ((values - low) / max(high - low, 1e-12) if low < 0 or high > 1 else values)
    step = -(-max(values.shape[:2]) // long_side)
    height, width = (max(1, size // step) for size in values.shape[:2])
    blocks = values[: height * step, : width * step]
    if step > 1 and min(values.shape[:2]) >= step:
        blocks = blocks.reshape(height, step, width, step, -1).mean(axis=(1, 3))
    else:
        blocks = values[::step, ::step]
    return np.asarray(np.round(blocks), np.uint8)


def within_budget(
    images: Mapping[str, bytes], order: Iterable[str], budget: int
) -> tuple[dict[str, str], int]:
    """Base64 of the images in order of importance while they fit; and how many were left out."""
    made: dict[str, str] = {}
    left, dropped = budget, 0
    for key in dict.fromkeys(order):
        png = images.get(key)
        if png is None:
            continue
        text = base64.b64encode(png).decode()
        if len(text) > left:
            dropped += 1
            continue
        left -= len(text)
        made[key] = text
    return made, dropped
