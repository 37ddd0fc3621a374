"""Records of the simulated 2D detector with hostile names, thumbnails and a recorded transform; for the report's tests."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import simulated_detector

from mld_core.records.format.schema import media_schema
from mld_core.records.store.png import encode_png

NAMES = ["<b>car</b>", "dog & co", "cow", "hen", "pig", "a class with a rather long name"]
FAULTS = {"missing": 0.05, "shifted": 0.04, "swapped": 0.05, "spurious": 0.03}
FRAMES = 110
WITH_THUMBNAILS = 40
"""The first images of a pass have one."""

SCALE, SHIFT = 1.5, (12.0, -6.0)
"""Of the recorded transform: original = pixel of the tensor * SCALE + SHIFT."""


def with_extras(monkeypatch, *, affine=False, thumbnails=True):
    """Let the simulation write hostile ids, thumbnails of the first images, and a transform."""
    module = simulated_detector
    plain = module.tables

    def tables(scene, frames, **keywords):
        made = plain(scene, frames, **keywords)
        made = {family: _hostile(table) for family, table in made.items()}
        samples = made["samples"]
        if affine:
            rows = [[SCALE, 0.0, SHIFT[0], 0.0, SCALE, SHIFT[1]]] * samples.num_rows
            place = samples.schema.get_field_index("affine")
            made["samples"] = samples.set_column(
                place, samples.schema.field(place), pa.array(rows, samples.schema.field(place).type)
            )
        if thumbnails:
            columns = [samples[name].combine_chunks() for name in ("unit", "rank_", "input_id")]
            # 1000 x 800 pixels, every fourth.
            png = encode_png(np.full((200, 250), 90, np.uint8))
            columns.append(pa.array([png if n < WITH_THUMBNAILS else None for n in frames], pa.binary()))
            made["media"] = pa.Table.from_arrays(columns, schema=media_schema())
        return made

    monkeypatch.setattr(module, "tables", tables)


def hostile_id(plain_id: str) -> str:
    """Every fifth id holds HTML."""
    return f"<img src=x onerror=alert(1)>{plain_id}" if int(plain_id[3:]) % 5 == 0 else plain_id


def _hostile(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("input_id")
    ids = [hostile_id(one) for one in table["input_id"].to_pylist()]
    return table.set_column(place, table.schema.field(place), pa.array(ids, pa.string()))
