"""How quick the pages' server is on a result of a million units.

    python tests/benchmarks/bench_app.py                  # prints the table
    python tests/benchmarks/bench_app.py --write          # into docs/performance.md

    python tests/benchmarks/bench_app.py --runs 10000     # the list of so many runs instead

A split with planted faults is evaluated, and its unit table repeated until it has `--rows` rows with ids of
their own: what the server reads is a result like any other. Times are of the server's own work, asked over a
loopback connection: the first answer of each kind after a start, then the median of further ones.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from _table import write_section
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "integrations")]
sys.path += [str(ROOT / "tests" / "parts"), str(ROOT / "tests" / "parts" / "data")]

import store_factory as records  # noqa: E402
from app_parts import Client, opened, serving  # noqa: E402
from planted import planted  # noqa: E402

from ml_debugger.evaluator import Evaluator  # noqa: E402
from mld_core.app import kept_rows  # noqa: E402
from mld_core.records.format.layout import Store  # noqa: E402

SEED_ROWS = 4_000
REPEATS = 9
WRONG = "is_error = true"
ARGUMENTS = ["--no-sandbox", "--disable-gpu"]
"""Of Chromium, as in the tests: it runs as root in a container."""


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


def _lasso(shift: float) -> str:
    """A circle over the middle of the map, as a filter."""
    corners = [(np.cos(at) + shift, np.sin(at)) for at in np.linspace(0, 2 * np.pi, 24, endpoint=False)]
    return f"inside(pca_1,pca_2,{','.join(f'{x:.3f},{y:.3f}' for x, y in corners)})"


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
    shapes = [_lasso(0.1 * place) for place in range(REPEATS)]
    ask("a lasso of 24 corners", "filter", conditions(*shapes))
    ask("a lasso and another test", "filter", conditions(*(f"{one} and {WRONG}" for one in shapes)))
    names = "row,pca_1,pca_2,category,is_error"
    ask("columns of the map, as bytes", "columns", [{"names": names}] * 3)
    return made


def in_browser(store: Path) -> list[str]:
    """From the command to the first paint, and the heap when the last rows were in sight, in Chromium."""
    command = [sys.executable, "-m", "mld_core.cli.main", "ui", "--no-browser", "--port", "0"]
    begun = time.perf_counter()
    with subprocess.Popen(
        command, env={**os.environ, "MLD_HOME": str(store)}, stdout=subprocess.PIPE, text=True
    ) as server:
        address = re.search(r"http://\S+", server.stdout.readline())[0]
        ready = time.perf_counter() - begun
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                page.goto(address)
                page.wait_for_selector("[role=option]", timeout=120_000)
                said = page.evaluate(
                    "() => [performance.getEntriesByType('navigation')[0].responseStart,"
                    " performance.getEntriesByName('first-contentful-paint')[0].startTime]"
                )
                page.goto(f"{address.partition('?')[0]}?page=samples")
                page.get_by_role("listbox").focus()
                for key in ("End", "Home", "End"):
                    page.keyboard.press(key)
                    page.wait_for_timeout(500)
                session = page.context.new_cdp_session(page)
                session.send("HeapProfiler.collectGarbage")
                heap = session.send("Runtime.getHeapUsage")["usedSize"]
                browser.close()
        finally:
            server.terminate()
    paint = (said[1] - said[0]) / 1000
    return [
        f"`mld ui` is ready {ready:.2f} s after the command; first paint {paint:.2f} s after the server's answer;",
        f"heap of the page at the last rows of Samples {heap / 1e6:.1f} MB.",
    ]


def many_runs(folder: Path, count: int) -> Path:
    """A store of so many evaluated runs: one that is linked again and again under other names."""
    factory = records.StoreFactory(folder)
    run = factory.run("net", "v0", n_class=6)
    for epoch in range(2):
        factory.add_pass(run, "val", planted(records, 200, seed=2, noise=0.06).data, n_epoch=epoch)
    Evaluator("net", "v0", store=folder).request_evaluation("all", None, options={"progress": False})
    source = folder / "net" / "v0"
    for number in range(1, count):
        target = folder / f"net{number % 100}" / f"v{number}"
        shutil.copytree(source, target, copy_function=os.link)
        info = json.loads((target / "run.json").read_text())
        info |= {"model_name": target.parent.name, "version_name": target.name}
        (target / "run.json").unlink()
        (target / "run.json").write_text(json.dumps(info))
    return folder


def home(store: Path, count: int) -> list[str]:
    """Seconds of the list of runs: the first page ever, further ones, a search at once and once all is read."""
    lines = [f"| list of {count:,} runs | s |", "|---|---|"]

    def took(name: str, ask: Callable[[], object]) -> None:
        begun = time.perf_counter()
        ask()
        lines.append(f"| {name} | {time.perf_counter() - begun:.2f} |")

    def read(client) -> None:
        while client.get("runs", search="accuracy > 0.5")["unread"]:
            time.sleep(1)

    with ExitStack() as stack:
        base, token = stack.enter_context(serving(Store(store)))
        held: list = []
        took("the session, the first ever", lambda: held.append(Client(base, token)))
        client = held[0]
        took("the first page", lambda: client.get("runs"))
        took("another page", lambda: client.get("runs", offset=count // 2))
        took("the first page again", lambda: client.get("runs"))
        took(
            "a search by metric, of what is read by then", lambda: client.get("runs", search="accuracy > 0.4")
        )
        took("all are read, beside the page", lambda: read(client))
        took("a search by metric", lambda: client.get("runs", search="accuracy > 0.6"))
        took("another order", lambda: client.get("runs", sort="-metric"))
    until = time.monotonic() + 60
    while not (store / kept_rows.FILE).is_file() and time.monotonic() < until:
        time.sleep(0.1)
    with ExitStack() as stack:
        begun = time.perf_counter()
        base, token = stack.enter_context(serving(Store(store)))
        client = Client(base, token)
        client.get("runs")
        lines.append(
            f"| the first page, from the start of another server | {time.perf_counter() - begun:.2f} |"
        )
        took("a search by metric there", lambda: client.get("runs", search="accuracy > 0.6"))
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, help="measure the list of so many runs instead")
    parser.add_argument("--write", action="store_true", help="write the table to docs/performance.md")
    options = parser.parse_args()
    if options.runs:
        with tempfile.TemporaryDirectory() as folder:
            lines = home(many_runs(Path(folder) / "store", options.runs), options.runs)
        text = (
            f"`python tests/benchmarks/bench_app.py --runs {options.runs}`, evaluated runs of two epochs. Lines of "
            "runs are read beside the page, and kept in the store.\n\n" + "\n".join(lines) + "\n"
        )
        print(text)
        if options.write:
            write_section("performance.md", "app-runs", text)
        return
    with tempfile.TemporaryDirectory() as folder:
        factory = make_store(Path(folder) / "store", options.rows)
        before = psutil.Process().memory_info().rss
        with opened(factory.store) as client:
            found = measure(client, options.rows)
        held = (psutil.Process().memory_info().rss - before) / 1e6
        seen = in_browser(factory.store.root)
    lines = ["| question | first, ms | further, ms | answer, kB |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {first:.0f} | {more:.0f} | {size / 1000:.0f} |" for name, first, more, size in found
    ]
    text = (
        f"## The pages\n\n`python tests/benchmarks/bench_app.py`: a result of {options.rows:,} units, asked of "
        f'`mld ui` over a loopback connection. "First" holds what is made once (an order\'s '
        f"permutation, a filter's rows, the columns read); the server then held {held:.0f} MB more.\n\n"
        + "\n".join([*lines, "", *seen])
        + "\n"
    )
    print(text)
    if options.write:
        write_section("performance.md", "app", text)


if __name__ == "__main__":
    main()
