"""Which rows count is planned from little: no more than units and numbers of all rows, keys of those that repeat."""

import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pytest
import store_factory

from mld_core.records.format.layout import PassKey
from mld_core.records.format.parts import read_family
from mld_core.records.read import dedup, plan
from mld_core.records.read.reader import select

KEY = PassKey("val", 0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_the_rows_that_count_are_those_that_all_keys_say(store, run, write_pass, seed):
    """Ids, contents, known repeats and places of the data set at random, over three ranks."""
    rng = np.random.default_rng(seed)
    folders = []
    for rank in range(3):
        batches = []
        for batch in range(4):
            ids = [f"id{number}" if number else None for number in rng.integers(0, 40, 10)]
            hashes = [f"h{number}" if number else None for number in rng.integers(0, 3, 10)]
            places = [f"{number}" if number < 30 else None for number in rng.integers(0, 60, 10)]
            made = {
                "ids": ids,
                "hashes": hashes,
                "repeats": (rng.random(10) < 0.1).tolist(),
                "batch_idx": batch,
            }
            made["source"] = ["input_id", "dataset_index"][batch % 2]
            batches.append((batch * 10, 10, {**made, "places": places if seed % 2 else None}))
        folders.append(write_pass(KEY, batches, rank=rank, world_size=3))
    parts = [part for folder in folders for part in sorted(folder.glob("*-0*"))]
    whole = pa.concat_tables([read_family(part, "samples", list(dedup.KEY_COLUMNS)) for part in parts])
    drop, non_unique = dedup.duplicates(whole.unify_dictionaries())
    (selection,) = select(store, run)
    kept = whole.filter(pa.array(~drop)).select(["rank_", "unit"])
    assert selection.table("samples", ["rank_", "unit"]).to_pydict() == kept.to_pydict()
    report = selection.report
    found = (report.rows_read, report.duplicates_dropped, report.non_unique_ids)
    assert found == (120, int(drop.sum()), non_unique)
    assert drop.any()


def test_parts_that_are_joined_while_rows_are_planned_lose_none(store, run, new_writer, put, monkeypatch):
    """The pass is sealed after its parts were listed and before their keys are read."""
    writer = new_writer()
    handle = writer.open(KEY)
    for start in range(0, 40, 10):
        assert put(writer, handle, start, 10)
        assert writer.flush(10)
    read = plan.read_rows

    def late(*asked):
        writer.seal(handle).result(10)
        monkeypatch.setattr(plan, "read_rows", read)
        yield from read(*asked)

    monkeypatch.setattr(plan, "read_rows", late)
    (selection,) = select(store, run)
    assert selection.n_rows == 40
    assert selection.table("samples", ["unit"])["unit"].to_pylist() == list(range(40))


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the largest memory of a process")
def test_planning_holds_little_of_a_row(tmp_path):
    """Where it grows by 450 bytes with each row, a hundred million rows are more than an ordinary machine has."""
    made = store_factory.StoreFactory(tmp_path)
    sizes = {"few": 100_000, "many": 400_000}
    for name, rows in sizes.items():
        data = store_factory.make_data(rows)
        made.add_pass(made.run(name), "val", data, batch=20_000, with_vectors=False)
    script = """
        import sys
        from mld_core.records.format.layout import RunKey, Store
        from mld_core.records.read.reader import select
        assert select(Store(sys.argv[1]), RunKey(sys.argv[2], "v1"))[0].n_rows == int(sys.argv[3])
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(int(peak.split()[1]) * 1024)
    """
    peaks = []
    for name, rows in sizes.items():
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), name, str(rows)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    of_a_row = (peaks[1] - peaks[0]) / 300_000
    print(f"{of_a_row:.0f} bytes a row")
    assert of_a_row < 150
