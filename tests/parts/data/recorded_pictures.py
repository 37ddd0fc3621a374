"""Pictures beside the samples of the store factory."""

import numpy as np
import pyarrow as pa

from mld_core.records.format.schema import media_schema
from mld_core.records.store.png import encode_png


def with_media(records, monkeypatch):
    """Let the store factory write a picture beside each sample: a grey patch as bright as its number."""
    plain = records.tables

    def tables(data, part, **keywords):
        made = plain(data, part, **keywords)
        ids = made["samples"]["input_id"].to_pylist()
        shades = [np.full((8, 8), sum(one.encode()) % 256, np.uint8) for one in ids]
        columns = [made["samples"][name].combine_chunks() for name in ("unit", "rank_", "input_id")]
        columns.append(pa.array([encode_png(shade) for shade in shades], pa.binary()))
        return {**made, "media": pa.Table.from_arrays(columns, schema=media_schema())}

    monkeypatch.setattr(records, "tables", tables)
