"""A simulated detector on simulated scenes, with label faults planted on request.

Objects have a class, a size and a difficulty; a feature vector is the class's centroid blurred by the
difficulty, logits are read off it, and boxes jitter, objects are missed and classes confused the more difficult
they are. Clutter makes false alarms, some of it looking like a class. Faults change the truths only: what the
detector says is the same with and without them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mld_core.records.format.layout import PassKey
from mld_core.records.format.schema import (
    detections_schema,
    parse_fields,
    samples_schema,
    truths_schema,
    vectors_schema,
)
from mld_core.records.format.vectors import from_numpy
from mld_core.records.write.writer import Writer, WriterOptions

WIDTH, HEIGHT = 1000, 800
FAULTS = ("missing", "shifted", "swapped", "spurious")


@dataclass
class Scene:
    """The records of one pass as arrays, and what was planted.

    Attributes:
        object_of: per detection, the simulated object it came from, -1 for clutter.
        truth_object: per truth, its object, -1 for a spurious one.
        removed: objects whose truth was removed.
        fault: per truth, 0 none or 1 + number of the fault in `FAULTS`.
    """

    frames: int
    n_class: int
    night: np.ndarray
    frame: np.ndarray
    label: np.ndarray
    score: np.ndarray
    box: np.ndarray
    logits: np.ndarray
    features: np.ndarray
    object_of: np.ndarray
    truth_frame: np.ndarray
    truth_label: np.ndarray
    truth_box: np.ndarray
    truth_object: np.ndarray
    removed: np.ndarray
    fault: np.ndarray
    crowd: np.ndarray = field(default_factory=lambda: np.empty(0, bool))


def world(n_class: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Class centroids (two pairs are close) and directions of clutter that looks like a class."""
    rng = np.random.default_rng(12345)
    centroids = rng.normal(size=(n_class, width))
    centroids[1] = 0.75 * centroids[0] + 0.66 * centroids[1]
    if n_class > 3:
        centroids[3] = 0.75 * centroids[2] + 0.66 * centroids[3]
    centroids *= 3 / np.linalg.norm(centroids, axis=1, keepdims=True)
    clutter = rng.normal(size=(4, width))
    clutter *= 2 / np.linalg.norm(clutter, axis=1, keepdims=True)
    return centroids, 0.55 * centroids[: len(clutter)] + clutter


def simulate(
    frames: int,
    *,
    seed: int = 0,
    n_class: int = 6,
    width: int = 24,
    objects: float = 5.0,
    clutter: float = 3.0,
    faults: dict[str, float] | None = None,
    jitter: int = 0,
    confused: float = 0.0,
    skill: float = 1.0,
) -> Scene:
    """Make one pass.

    Args:
        frames: How many.
        seed: Of the scenes and the faults.
        n_class: Classes.
        width: Of the feature vectors.
        objects: Mean number in a frame.
        clutter: Mean number of false candidates in a frame.
        faults: Fault -> share of the truths that is changed.
        jitter: Another epoch of the same detector on the same scenes has another number.
        confused: Share of class 2 that is said to be class 5 at night.
        skill: Divides the difficulty of the objects and the clutter.
    """
    rng = np.random.default_rng(seed)
    centroids, traps = world(n_class, width)
    night = rng.random(frames) < 0.3
    per_frame = rng.poisson(objects, frames)
    frame = np.repeat(np.arange(frames), per_frame)
    count = len(frame)
    label = rng.choice(n_class, count, p=_shares(n_class))
    hard = rng.beta(1.2, 4, count) / skill
    box = _boxes(rng, count)
    truth_label, truth_box, kept, fault, extra = _plant(rng, frame, label, box, n_class, faults or {})
    blur = rng.normal(size=(count, width))
    trap = rng.poisson(clutter / skill, frames)

    rng = np.random.default_rng([seed, 77, jitter])
    size = np.sqrt((box[:, 2:] - box[:, :2]).prod(axis=1))
    features = centroids[label] * (1 - 0.55 * hard)[:, None] + blur * (0.35 + 0.5 * hard)[:, None]
    features += 0.15 * rng.normal(size=features.shape)
    swapped = (label == 2) & night[frame] & (rng.random(count) < confused)
    features[swapped] += centroids[min(5, n_class - 1)] - centroids[2]
    missed = rng.random(count) < _sigmoid(-3.2 - skill + 5 * hard + 1.2 * (size < 40))
    weak = missed & (rng.random(count) < 0.5)
    seen = ~missed | weak
    spread = (0.03 + 0.09 * hard + 0.15 * weak)[:, None] * np.tile(box[:, 2:] - box[:, :2], 2)
    moved = box + rng.normal(size=(count, 4)) * spread
    logits = _head(rng, features, centroids) - (1.2 * hard + 2.5 * weak)[:, None]
    twice = seen & (rng.random(count) < 0.12)
    again = box + rng.normal(size=(count, 4)) * 0.08 * np.tile(box[:, 2:] - box[:, :2], 2)
    false_frame = np.repeat(np.arange(frames), trap)
    false = len(false_frame)
    kind = rng.integers(0, len(traps), false)
    like = rng.random(false) < 0.35
    false_features = np.where(like[:, None], traps[kind], 0) + 0.75 * rng.normal(size=(false, width))
    false_logits = _head(rng, false_features, centroids) - 0.6
    parts = [
        (frame[seen], logits[seen], moved[seen], features[seen], np.flatnonzero(seen)),
        (
            frame[twice],
            logits[twice] - 1.5,
            again[twice],
            features[twice] + 0.3 * rng.normal(size=(int(twice.sum()), width)),
            np.flatnonzero(twice),
        ),
        (false_frame, false_logits, _boxes(rng, false), false_features, np.full(false, -1)),
    ]
    which, z, said, vectors, source = (np.concatenate([part[k] for part in parts]) for k in range(5))
    score = _sigmoid(z.max(axis=1))
    good = np.flatnonzero(score > 0.05)
    order = good[np.lexsort((-score[good], which[good]))]
    said[:, 2:] = np.maximum(said[:, 2:], said[:, :2] + 2)
    removed = np.flatnonzero(~kept)
    true_frame = np.concatenate([frame[kept], extra[0]])
    by_frame = np.argsort(true_frame, kind="stable")
    return Scene(
        frames,
        n_class,
        night,
        which[order],
        z[order].argmax(axis=1),
        score[order].astype(np.float32),
        said[order].astype(np.float32),
        z[order].astype(np.float32),
        vectors[order].astype(np.float32),
        source[order],
        true_frame[by_frame],
        np.concatenate([truth_label[kept], extra[1]])[by_frame],
        np.concatenate([truth_box[kept], extra[2]])[by_frame].astype(np.float32),
        np.concatenate([np.flatnonzero(kept), np.full(len(extra[0]), -1)])[by_frame],
        removed,
        np.concatenate([fault[kept], np.full(len(extra[0]), 1 + FAULTS.index("spurious"))])[by_frame],
    )


def _shares(n_class: int) -> np.ndarray:
    weight = 1 / np.arange(2, n_class + 2)
    return weight / weight.sum()


def _boxes(rng: Any, count: int) -> np.ndarray:
    size = np.exp(rng.normal(np.log(80), 0.6, count)).clip(14, 400)
    aspect = np.exp(rng.normal(0, 0.25, count))
    w, h = size * np.sqrt(aspect), size / np.sqrt(aspect)
    x, y = rng.uniform(0, WIDTH - 20, count), rng.uniform(0, HEIGHT - 20, count)
    return np.stack([x, y, x + w, y + h], axis=1)


def _head(rng: Any, features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    return 2.6 * (features @ unit.T) - 4.2 + 0.4 * rng.normal(size=(len(features), len(centroids)))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _plant(
    rng: Any, frame: np.ndarray, label: np.ndarray, box: np.ndarray, n_class: int, faults: dict[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Labels, boxes, which truths remain, their faults, and (frame, label, box) of spurious ones."""
    count = len(frame)
    unknown = set(faults) - set(FAULTS)
    assert not unknown, unknown
    order = rng.permutation(count)
    fault = np.zeros(count, int)
    start = 0
    for number, name in enumerate(FAULTS[:3], start=1):
        size = round(faults.get(name, 0) * count)
        fault[order[start : start + size]] = number
        start += size
    label, box = label.copy(), box.copy()
    shifted = fault == 1 + FAULTS.index("shifted")
    angle, by = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.3, 0.6, count)
    step = np.stack([np.cos(angle), np.sin(angle)], axis=1) * by[:, None] * (box[:, 2:] - box[:, :2])
    box[shifted] += np.tile(step, 2)[shifted]
    swapped = fault == 1 + FAULTS.index("swapped")
    label[swapped] = (label[swapped] + rng.integers(1, n_class, swapped.sum())) % n_class
    more = round(faults.get("spurious", 0) * count)
    extra = (rng.choice(frame, more), rng.choice(n_class, more, p=_shares(n_class)), _boxes(rng, more))
    return label, box, fault != 1 + FAULTS.index("missing"), fault, extra


# --- writing ------------------------------------------------------------------------------------------------


def tables(
    scene: Scene,
    frames: np.ndarray,
    *,
    first_unit: int = 0,
    rank: int = 0,
    start: int = 0,
    sigmoid: bool = True,
    labelled: bool = True,
) -> dict[str, pa.Table]:
    """The families of some frames (numbers of the scene), as a tracer writes them."""
    unit_of = {int(number): first_unit + place for place, number in enumerate(frames)}
    ids = [f"img{start + number:06d}" for number in frames]
    rows = len(frames)
    dets, det_idx, n_detections = _rows_of(scene.frame, frames)
    trues, gt_idx, n_truths = _rows_of(scene.truth_frame, frames)
    if not labelled:
        trues, gt_idx = trues[:0], gt_idx[:0]
    samples = {
        "unit": np.arange(first_unit, first_unit + rows),
        "rank_": np.full(rows, rank),
        "input_id": ids,
        "id_source": ["batch"] * rows,
        "input_hash": [f"{start + number:032x}" for number in frames],
        "batch_idx": np.full(rows, first_unit),
        "row": np.arange(rows),
        "global_step": np.zeros(rows, int),
        "mode": ["eval"] * rows,
        "n_detections": n_detections,
        "n_truths": n_truths,
        "labelled": np.full(rows, labelled),
        "image_height": np.full(rows, HEIGHT),
        "image_width": np.full(rows, WIDTH),
        "when": ["night" if scene.night[number] else "day" for number in frames],
    }
    fields = parse_fields([{"name": "when", "type": "str"}])
    crowd = scene.crowd[trues] if len(scene.crowd) else np.zeros(len(trues), bool)
    boxes = {
        "unit": [unit_of[int(number)] for number in scene.frame[dets]],
        "rank_": np.full(len(dets), rank),
        "input_id": [f"img{start + number:06d}" for number in scene.frame[dets]],
        "det_idx": det_idx,
        "label": scene.label[dets],
        "score": scene.score[dets],
        "activation": ["sigmoid" if sigmoid else "none"] * len(dets),
        "box": scene.box[dets].tolist(),
        "source_index": dets,
    }
    truths = {
        "unit": [unit_of[int(number)] for number in scene.truth_frame[trues]],
        "rank_": np.full(len(trues), rank),
        "input_id": [f"img{start + number:06d}" for number in scene.truth_frame[trues]],
        "gt_idx": gt_idx,
        "label": scene.truth_label[trues],
        "box": scene.truth_box[trues].tolist(),
        "ignore": np.zeros(len(trues), bool),
        "crowd": crowd,
    }
    made = {
        "samples": _table(samples, samples_schema("detection", fields)),
        "detections": _table(boxes, detections_schema("detection")),
        "truths": _table(truths, truths_schema("detection")),
    }
    if sigmoid:
        schema = vectors_schema("detection", scene.n_class, {"roi": (scene.features.shape[1], "float16")})
        arrays = [
            made["detections"][name].combine_chunks() for name in ("unit", "rank_", "input_id", "det_idx")
        ]
        arrays += [from_numpy(np.ascontiguousarray(scene.logits[dets], np.float32))]
        arrays += [from_numpy(scene.features[dets].astype(np.float16))]
        made["vectors"] = pa.Table.from_arrays(arrays, schema=schema)
    return made


def _rows_of(frame: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of some frames in order, each one's number in its frame, and how many each frame has."""
    every = np.unique(frames)
    first, count = np.searchsorted(frame, every), np.searchsorted(frame, every, "right")
    count -= first
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(first, count) + number, number, count[np.searchsorted(every, frames)]


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    made = []
    for item in schema:
        rows = len(columns["unit"])
        if item.name not in columns:
            made.append(pa.nulls(rows, item.type))
        elif pa.types.is_dictionary(item.type):
            made.append(pa.array(columns[item.name], pa.string()).dictionary_encode().cast(item.type))
        else:
            made.append(pa.array(columns[item.name], item.type))
    return pa.Table.from_arrays(made, schema=schema)


def write(
    store: Any,
    run: Any,
    dataset: str,
    scene: Scene,
    *,
    n_epoch: int | None = 0,
    start: int = 0,
    world_size: int = 1,
    repeat: int = 0,
    sigmoid: bool = True,
    labelled: bool = True,
    attempt: str | None = None,
) -> None:
    """Write one pass with the real writer.

    Args:
        store: The store.
        run: The run.
        dataset: The split.
        scene: What to write.
        n_epoch: Epoch.
        start: Added to the number in every input id.
        world_size: Ranks; frames are dealt in turn.
        repeat: So many frames are written once more by the last rank, as a distributed sampler pads.
        sigmoid: Write logits and features.
        labelled: Write the truths.
        attempt: Name of the attempt.
    """
    name = attempt or f"20261121T{(n_epoch or 0) + 10:06d}-{'cd' * 3}-000"
    for rank in range(world_size):
        writer = Writer(
            store,
            run,
            attempt=name,
            rank=rank,
            world_size=world_size,
            options=WriterOptions(fsync=False),
            on_problem=_refuse,
        )
        handle = writer.open(
            PassKey(dataset, n_epoch, 0),
            meta={"task": "detection", "activation": "sigmoid", "background": None},
        )
        mine = np.arange(rank, scene.frames, world_size)
        if rank == world_size - 1 and repeat:
            mine = np.append(mine, np.arange(repeat) * world_size)
        for first in range(0, len(mine), 100):
            numbers = mine[first : first + 100]
            made = tables(
                scene, numbers, first_unit=first, rank=rank, start=start, sigmoid=sigmoid, labelled=labelled
            )
            assert writer.put(
                handle, lambda made=made: made, rows=len(numbers), nbytes=made["samples"].nbytes
            )
        writer.seal(handle).result(timeout=60)
        account = writer.close(60)
        assert account.rows_lost == 0, account.reasons


def _refuse(key: str, message: str) -> None:
    raise AssertionError(f"{key}: {message}")
