"""Records of a simulated 3D detector on the ray-cast scenes of the examples, with faults; for the tests of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lidar_scenes as scenes
import numpy as np
import pyarrow as pa

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.schema import detections_schema, samples_schema, truths_schema, vectors_schema
from mld_core.records.format.vectors import from_numpy
from mld_core.records.write.writer import Writer, WriterOptions


@dataclass
class Said:
    """What the detector says of one frame."""

    box: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    velocity: np.ndarray


def frame_id(number: int, start: int = 0) -> str:
    """Input id of a frame; some hold HTML."""
    return f"<b>road</b> & {start + number:04d}" if number % 7 == 0 else f"frame-{start + number:04d}"


def make_scenes(count: int, seed: int = 0):
    """Frames with planted faults (flipped, missing), and the true ones."""
    rng = np.random.default_rng(seed)
    true = [scenes.make_frame(rng) for _ in range(count)]
    planted = scenes.Planted()
    spoilt = [scenes._spoil(i, frame, planted, 0.06, rng) for i, frame in enumerate(true)]
    return true, spoilt, planted


def detect(frame, rng, *, skill=1.0, silent=None) -> Said:
    """Detections of one frame: what has points is found, with errors that shrink with their number."""
    n = len(frame.boxes)
    ease = np.log1p(frame.n_points) / 4 * skill
    found = rng.random(n) < 1 / (1 + np.exp(-4 * (ease - 0.45)))
    if silent is not None:
        turn = (np.degrees(np.arctan2(frame.boxes[:, 1], frame.boxes[:, 0])) - silent) % 360
        found &= turn > 60
    rows = np.flatnonzero(found)
    noise = 0.15 + 1.5 * np.exp(-3 * ease[rows])
    box = frame.boxes[rows].astype(np.float64)
    box[:, :2] += rng.normal(size=(len(rows), 2)) * noise[:, None]
    box[:, 2] += rng.normal(size=len(rows)) * 0.05
    box[:, 3:6] *= np.exp(0.15 * rng.normal(size=(len(rows), 3)) * noise[:, None])
    box[:, 6] += 0.15 * rng.normal(size=len(rows))
    swap = rng.random(len(rows)) < 0.03
    box[swap, 3:5] = box[swap, 4:2:-1]
    label = frame.labels[rows].copy()
    confused = rng.random(len(rows)) < 0.05
    label[confused] = (label[confused] + 1) % 3
    strength = 4 * ease[rows] - 1 + 0.6 * rng.normal(size=len(rows))
    velocity = frame.velocities[rows] + rng.normal(size=(len(rows), 2)) * 0.3
    ghosts = rng.poisson(2.5)
    where = rng.uniform(-24, 24, (ghosts, 2))
    extra = np.column_stack([where, np.full(ghosts, 0.8), np.tile([1.8, 4.2, 1.5], (ghosts, 1))])
    box = np.concatenate([box, np.column_stack([extra, rng.uniform(-3, 3, ghosts)])])
    label = np.concatenate([label, rng.integers(0, 3, ghosts)])
    strength = np.concatenate([strength, rng.normal(-0.8, 1, ghosts)])
    logits = rng.normal(-3.5, 0.4, (len(box), 3))
    logits[np.arange(len(box)), label] = strength
    velocity = np.concatenate([velocity, rng.normal(size=(ghosts, 2))])
    order = np.argsort(-logits.max(axis=1), kind="stable")
    return Said(box[order], logits[order].argmax(axis=1), logits[order], velocity[order])


def write_pass(
    store: Store, run: RunKey, dataset: str, frames, said: list[Said], n_epoch: int, start=0
) -> None:
    """Write one pass with the real writer."""
    options = WriterOptions(fsync=False)
    attempt = f"20261121T{n_epoch + 10:06d}-{'ef' * 3}-000"
    writer = Writer(store, run, attempt=attempt, rank=0, world_size=1, options=options, on_problem=_refuse)
    meta = {"task": "detection3d", "activation": "sigmoid", "background": None}
    handle = writer.open(PassKey(dataset, n_epoch, 0), meta=meta)
    made = _tables(frames, said, start)
    assert writer.put(handle, lambda: made, rows=len(frames), nbytes=made["samples"].nbytes)
    writer.seal(handle).result(timeout=60)
    assert writer.close(60).rows_lost == 0


def _tables(frames, said: list[Said], start: int) -> dict[str, pa.Table]:
    count = len(frames)
    ids = [frame_id(number, start) for number in range(count)]
    samples = {
        "unit": np.arange(count),
        "rank_": np.zeros(count, int),
        "input_id": ids,
        "id_source": ["batch"] * count,
        "input_hash": [f"{start + number:032x}" for number in range(count)],
        "batch_idx": np.arange(count),
        "row": np.zeros(count, int),
        "global_step": np.zeros(count, int),
        "mode": ["eval"] * count,
        "labelled": np.ones(count, bool),
        "n_detections": [len(one.box) for one in said],
        "n_truths": [len(one.boxes) for one in frames],
    }
    boxes = _rows([len(one.box) for one in said], ids, "det_idx")
    boxes |= {
        "label": np.concatenate([one.label for one in said]),
        "score": np.concatenate([1 / (1 + np.exp(-one.logits.max(axis=1))) for one in said]),
        "activation": ["sigmoid"] * len(boxes["unit"]),
        "box": np.concatenate([one.box for one in said]).tolist(),
        "velocity": np.concatenate([one.velocity for one in said]).tolist(),
    }
    truths = _rows([len(one.boxes) for one in frames], ids, "gt_idx")
    total = len(truths["unit"])
    truths |= {
        "label": np.concatenate([one.labels for one in frames]),
        "box": np.concatenate([one.boxes for one in frames]).tolist(),
        "velocity": np.concatenate([one.velocities for one in frames]).tolist(),
        "n_points": np.concatenate([one.n_points for one in frames]),
        "ignore": np.zeros(total, bool),
        "crowd": np.zeros(total, bool),
    }
    made = {
        "samples": _table(samples, samples_schema("detection3d")),
        "detections": _table(boxes, detections_schema("detection3d")),
        "truths": _table(truths, truths_schema("detection3d")),
    }
    logits = np.concatenate([one.logits for one in said]).astype(np.float32)
    arrays = [made["detections"][name].combine_chunks() for name in ("unit", "rank_", "input_id", "det_idx")]
    schema = vectors_schema("detection3d", 3, {})
    made["vectors"] = pa.Table.from_arrays([*arrays, from_numpy(np.ascontiguousarray(logits))], schema=schema)
    return made


def _rows(counts: list[int], ids: list[str], number: str) -> dict[str, Any]:
    unit = np.repeat(np.arange(len(counts)), counts)
    return {
        "unit": unit,
        "rank_": np.zeros(len(unit), int),
        "input_id": [ids[one] for one in unit],
        number: np.concatenate([np.arange(one) for one in counts]),
    }


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    made = []
    for item in schema:
        if item.name not in columns:
            made.append(pa.nulls(len(columns["unit"]), item.type))
        elif pa.types.is_dictionary(item.type):
            made.append(pa.array(columns[item.name], pa.string()).dictionary_encode().cast(item.type))
        else:
            made.append(pa.array(columns[item.name]).cast(item.type))
    return pa.Table.from_arrays(made, schema=schema)


def _refuse(key: str, message: str) -> None:
    raise AssertionError(f"{key}: {message}")
