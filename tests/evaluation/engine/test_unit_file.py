"""How a table of units lies on the disk."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.evaluation.engine.passes import unit_file


def test_what_differs_from_row_to_row_has_no_dictionary_and_what_repeats_has(tmp_path):
    """A unit table is smaller for it than as Arrow writes one, and reads the same."""
    rng, rows = np.random.default_rng(0), 20_000
    table = pa.table(
        {
            "unit_id": [f"{number:09d}" for number in range(rows)],
            "input_id": [f"id{number}" for number in rng.permutation(rows)],
            "error_proba": rng.random(rows).astype(np.float32),
            "category": rng.choice(["stable_coverage", "hotspot"], rows),
            "diagnosis": [["C01", "C20"] if number % 7 == 0 else [] for number in range(rows)],
            "gt": rng.integers(0, 10, rows),
        }
    )
    ours, theirs = tmp_path / "ours.parquet", tmp_path / "theirs.parquet"
    with unit_file(ours, table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, theirs, compression="zstd")
    group = pq.ParquetFile(ours).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    with_one = {one.path_in_schema for one in columns if one.has_dictionary_page}
    assert with_one == {"category", "diagnosis.list.element", "gt"}
    assert pq.read_table(ours).equals(table)
    assert ours.stat().st_size < 0.9 * theirs.stat().st_size
