"""Writes frames with boxes into a store, with the real writer; for tests here and in tests/mmdet3d."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from mld_core.records.format.layout import PassKey
from mld_core.records.format.schema import (
    IMAGE_BOX,
    IMAGE_BOX_TYPE,
    detections_schema,
    parse_fields,
    samples_schema,
    truths_schema,
    vectors_schema,
)
from mld_core.records.format.vectors import from_numpy
from mld_core.records.write.writer import Writer, WriterOptions


def table(rows, schema):
    """Rows (dicts) under a schema; what a row lacks is null."""
    columns = []
    for item in schema:
        values = [row.get(item.name) for row in rows]
        if pa.types.is_dictionary(item.type):
            columns.append(pa.array(values, pa.string()).dictionary_encode().cast(item.type))
        else:
            columns.append(pa.array(values, item.type))
    return pa.Table.from_arrays(columns, schema=schema)


def rows_of(part, key, place):
    """Rows of the detections or truths of one frame."""
    made = []
    for k in range(len(part["box"])):
        row = {**key, place: k, "ignore": False, "crowd": False, "activation": "sigmoid"}
        for name, values in part.items():
            value = values[k]
            row[name] = value.tolist() if hasattr(value, "tolist") else value
        made.append(row)
    return made


def write(
    store,
    run,
    dataset,
    frames,
    task,
    *,
    class_names=None,
    n_epoch=0,
    label_fields=(),
    world_size=1,
):
    """One sealed pass, whose frames are dealt in turn to the ranks.

    A frame: input_id, image?, affine?, calibration?, ego_pose?, score_thresh?, truths, detections; detections may
    have `logits`.
    """
    store.ensure_run(run, {"task": task, "class_names": class_names, "n_class": len(class_names or [])})
    for rank in range(world_size):
        _write_rank(store, run, PassKey(dataset, n_epoch, 0), frames, task, label_fields, rank, world_size)


def _write_rank(store, run, key, frames, task, label_fields, rank, world_size):
    def refuse(key, message):
        raise AssertionError(f"{key}: {message}")

    writer = Writer(
        store,
        run,
        attempt=f"20261121T{key.n_epoch + 10:06d}-{'ab' * 3}-000",
        rank=rank,
        world_size=world_size,
        options=WriterOptions(fsync=False),
        on_problem=refuse,
    )
    handle = writer.open(key, meta={"task": task, "activation": "sigmoid"})
    tables, mine = _tables(frames, task, label_fields, rank, world_size), len(frames[rank::world_size])
    assert writer.put(handle, lambda: tables, rows=mine, nbytes=1 << 16)
    writer.seal(handle)
    assert writer.wait(None, 30)
    account = writer.close(30)
    assert account.rows_lost == 0, account


def _tables(frames, task, label_fields, rank, world_size):
    samples, found, true, logits = [], [], [], []
    for unit, frame in enumerate(frames[rank::world_size]):
        key = {"unit": unit, "rank_": rank, "input_id": frame["input_id"]}
        image = frame.get("image", (None, None))
        samples.append(
            {
                **key,
                **{
                    name: frame.get(name)
                    for name in ("affine", "calibration", "ego_pose", "score_thresh", "input_hash")
                },
                "id_source": "input_id",
                "mode": "eval",
                "batch_idx": unit,
                "row": 0,
                "labelled": frame.get("labelled", True),
                "image_height": image[0],
                "image_width": image[1],
                "n_detections": len(frame["detections"]["box"]),
                "n_truths": len(frame["truths"]["box"]),
                "nonfinite": False,
                "overflow": False,
                "cap_hit": False,
            }
        )
        said = dict(frame["detections"])
        logits.append(said.pop("logits", None))
        found += rows_of(said, key, "det_idx")
        true += rows_of(frame["truths"], key, "gt_idx")
    truths = truths_schema(task, parse_fields(label_fields))
    if any(row.get(IMAGE_BOX) is not None for row in true) and IMAGE_BOX not in truths.names:
        truths = truths.append(pa.field(IMAGE_BOX, IMAGE_BOX_TYPE))
    tables = {
        "samples": table(samples, samples_schema(task)),
        "detections": table(found, detections_schema(task)),
        "truths": table(true, truths),
    }
    if all(one is not None for one in logits):
        every = np.ascontiguousarray(np.concatenate(logits), np.float32)
        arrays = [
            tables["detections"][name].combine_chunks() for name in ("unit", "rank_", "input_id", "det_idx")
        ]
        schema = vectors_schema(task, every.shape[1], {})
        tables["vectors"] = pa.Table.from_arrays([*arrays, from_numpy(every)], schema=schema)
    assert np.all([one.num_rows >= 0 for one in tables.values()])
    return tables
