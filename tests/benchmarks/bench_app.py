"""How quick the pages' server is on a result of a million units.

    python tests/benchmarks/bench_app.py                  # prints the table
    python tests/benchmarks/bench_app.py --write          # into docs/performance.md

A split with planted faults is evaluated, and its unit table repeated until it has `--rows` rows with ids of
their own: what the server reads is a result like any other. Times are of the server's own work, asked over a
loopback connection: the first answer of each kind after a start, then the median of further ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from _table import write_section

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "integrations")]
sys.path += [str(ROOT / "tests" / "parts"), str(ROOT / "tests" / "parts" / "data")]

import store_factory as records  # noqa: E402
from app_parts import opened  # noqa: E402
from planted import planted  # noqa: E402

from ml_debugger.evaluator import Evaluator  # noqa: E402

SEED_ROWS = 4_000
REPEATS = 9
WRONG = "is_error = true"


def make_store(folder: Path, rows: int) -> records.StoreFactory:
    """A store with one result whose val split has so many units."""
    factory = records.StoreFactory(folder)
    run = factory.run("net", "v1", n_class=6)
    factory.add_pass(run, "val", planted(records, SEED_ROWS, seed=2, noise=0.06, broken=0.08).data, n_epoch=0)
    result = Evaluator("net", "v1", store=folder).request_evaluation("big", options={"progress": False})
    info = json.loads((result.folder / "result.json").read_text())
    path = result.folder / info["passes"][0]["units"]
    unit, schema = pq.read_table(path), pq.read_schema(path)
    copies = -(-rows // len(unit))
    with pq.ParquetWriter(path.with_suffix(".new"), schema, compression="zstd") as writer:
        held = []
        for copy in range(copies):
            piece = unit.slice(0, min(len(unit), rows - copy * len(unit)))
            for name in ("unit_id", "input_id"):
                made = pc.binary_join_element_wise(piece[name], pa.scalar(f"{copy:05d}"), "-")
                piece = piece.set_column(schema.get_field_index(name), schema.field(name), made)
            jitter = np.random.default_rng(copy).normal(0, 1e-4, len(piece))
            loss = pc.add(piece["loss"], pa.array(jitter))
            held.append(piece.set_column(schema.get_field_index("loss"), schema.field("loss"), loss))
            if len(held) == 16 or copy == copies - 1:
                writer.write_table(pa.concat_tables(held))
                held = []
    path.with_suffix(".new").replace(path)
    info["passes"][0]["counts"] = rows
    (result.folder / "result.json").write_text(json.dumps(info))
    return factory


def timed(client, path: str, **query) -> tuple[float, int]:
    """Milliseconds of one answer, and its bytes."""
    begun = time.perf_counter()
    answer = client.ask(path, model="net", version="v1", **query)
    took = 1000 * (time.perf_counter() - begun)
    answer.raise_for_status()
    return took, len(answer.content)


def measure(client, rows: int) -> list[tuple[str, float, float, int]]:
    """(question, first ms, median ms of further ones, bytes) for each question of a page."""
    rng = np.random.default_rng(0)
    made = []

    def ask(name: str, path: str, queries: list[dict[str, object]]) -> None:
        first, size = timed(client, path, **queries[0])
        more = [timed(client, path, **query)[0] for query in queries[1:]]
        made.append((name, first, statistics.median(more) if more else first, size))

    def deep(**query: object) -> list[dict[str, object]]:
        places = rng.integers(0, rows // 20, REPEATS)
        return [{**query, "offset": int(place), "limit": 60} for place in places]

    def conditions(*more: str) -> list[dict[str, object]]:
        return [{"filter": f"{one}"} for one in more]

    ask("Evaluation, the whole split", "evaluation", [{}] * REPEATS)
    ask("Evaluation of a filter", "evaluation", conditions("gt = 1", "gt = 2", "gt = 3", "prediction = 4"))
    ask("a page of 60, worst first", "samples", deep())
    ask("a page of 60 of a filter", "samples", deep(filter=WRONG))
    ask("a page of 60, another order", "samples", deep(sort="-confidence"))
    ask(
        "one sample with its evidence",
        "sample",
        [{"row": int(one)} for one in rng.integers(0, rows, REPEATS)],
    )
    ask("facets", "facets", conditions(WRONG, "gt = 1", "gt = 2", "gt = 3"))
    ask("confusion", "confusion", conditions(WRONG, "gt = 1", "gt = 2", "gt = 3"))
    ask("heatmap", "heatmap", conditions(WRONG, "gt = 1", "gt = 2", "gt = 3"))
    names = "row,pca_1,pca_2,category,is_error"
    ask("columns of the map, as bytes", "columns", [{"names": names}] * 3)
    return made


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--write", action="store_true", help="write the table to docs/performance.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        factory = make_store(Path(folder) / "store", options.rows)
        before = psutil.Process().memory_info().rss
        with opened(factory.store) as client:
            found = measure(client, options.rows)
        held = (psutil.Process().memory_info().rss - before) / 1e6
    lines = ["| question | first, ms | further, ms | answer, kB |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {first:.0f} | {more:.0f} | {size / 1000:.0f} |" for name, first, more, size in found
    ]
    text = (
        f"## The pages\n\n`python tests/benchmarks/bench_app.py`: a result of {options.rows:,} units, asked of "
        f'`mld ui` over a loopback connection. "First" holds what is made once (an order\'s '
        f"permutation, a filter's rows, the columns read); the server then held {held:.0f} MB more.\n\n"
        + "\n".join(lines)
        + "\n"
    )
    print(text)
    if options.write:
        write_section("performance.md", "app", text)


if __name__ == "__main__":
    main()
