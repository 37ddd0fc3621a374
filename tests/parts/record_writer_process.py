"""A process that writes rows until it is killed. Run as a script by test_records_kill.py.

Arguments: store root, attempt, mode. It prints one line per durable row count: "flushed <rows>", then "sealed".
`pause:<step>:<n>` stops for good at the n-th time a step of the write protocol is reached, after printing "paused".
`run` writes at full speed with small parts until it is killed; `pass` writes one pass and seals it.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pyarrow as pa

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.write.writer import Writer, WriterOptions

ROWS = 50
SCHEMA = pa.schema(
    [("unit", pa.int64()), ("rank_", pa.int32()), ("input_id", pa.string()), ("value", pa.int64())]
)


def tables(start: int) -> dict[str, pa.Table]:
    units = np.arange(start, start + ROWS)
    ids = [f"id-{unit}" for unit in units]
    samples = pa.table(
        [pa.array(units), pa.array(np.zeros(ROWS, np.int32)), pa.array(ids), pa.array(units)], SCHEMA.names
    )
    samples = samples.cast(SCHEMA)
    return {"samples": samples, "vectors": samples.drop_columns(["input_id"])}


def main() -> None:
    root, attempt, mode = sys.argv[1:4]
    store, run = Store(root), RunKey("m", "v1")
    seen: dict[str, int] = {}

    def steps(name: str) -> None:
        seen[name] = seen.get(name, 0) + 1
        if mode == f"pause:{name}:{seen[name]}":
            print("paused", flush=True)
            time.sleep(600)

    batches = 8 if mode != "run" else 1_000_000
    options = WriterOptions(roll_mb=0.02, queue_mb=1, roll_seconds=0.2, steps=steps)
    writer = Writer(store, run, attempt=attempt, options=options)
    handle = writer.open(PassKey("train", 0))
    for index in range(batches):
        start = index * ROWS
        writer.put(handle, lambda start=start: tables(start), rows=ROWS, nbytes=4000)
        if mode != "run" or index % 7 == 0:
            writer.flush(600)
            print("flushed", start + ROWS, flush=True)
    if writer.wait([writer.seal(handle)], 600):
        print("sealed", flush=True)
    writer.close(10)


if __name__ == "__main__":
    main()
