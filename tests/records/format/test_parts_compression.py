"""Columns of vectors are compressed where that wins something, and read the same either way."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mld_core.records.format.options import WriterOptions
from mld_core.records.format.parts import write_family
from mld_core.records.format.vectors import from_numpy


@pytest.mark.parametrize("codec", ["zstd", "lz4", "none"])
def test_what_does_not_shrink_is_not_compressed(tmp_path, codec):
    dense = np.random.default_rng(0).normal(size=(300, 64))
    table = pa.table(
        {
            "input_id": pa.array([str(i) for i in range(300)]),
            "logits": from_numpy(dense.astype(np.float32)),
            "features": from_numpy(np.maximum(dense, 0).astype(np.float16)),
        }
    ).slice(7)
    write_family(tmp_path / "vectors.parquet", "vectors", table, WriterOptions(codec=codec))
    group = pq.ParquetFile(tmp_path / "vectors.parquet").metadata.row_group(0)
    used = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
    name = {"zstd": "ZSTD", "lz4": "LZ4", "none": "UNCOMPRESSED"}[codec]
    assert used == {"input_id": name, "logits": "UNCOMPRESSED", "features": name}
    assert pq.read_table(tmp_path / "vectors.parquet").equals(table.combine_chunks())


def test_an_empty_table_of_vectors_is_written(tmp_path):
    table = pa.table({"logits": from_numpy(np.zeros((0, 4), np.float32))})
    assert write_family(tmp_path / "vectors.parquet", "vectors", table, WriterOptions()).rows == 0
