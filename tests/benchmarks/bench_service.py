"""The service's speed on loopback: uploads against a plain copy to the same disk, and metadata reads.

    python tests/benchmarks/bench_service.py [--quick] [--write] [--only uploads|passes|reads|lists]

Upload, each while no check of a file before is under way: one file at a time through the client to a server in a
process of its own, beside copying the same file to the same disk and making it durable (an upload is durable when it is
answered), and beside hashing it and copying it, which any content-addressed store has to do. In turn, medians of the rounds. The server's check of the content is off the
path (it runs after the answer), so the files are random bytes.
Reads: an open loop at 200 requests a second from a process of its own, over runs and passes; the latency of each
counts from when it was due.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from _table import markdown, write_section

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "parts"), str(ROOT / "tests" / "parts" / "data")]

import psutil  # noqa: E402
import requests  # noqa: E402
import store_factory  # noqa: E402
from planted import planted  # noqa: E402
from server_parts import ServerProcess  # noqa: E402

from mld_core.records.format.manifest import fsync_dir  # noqa: E402
from mld_core.service.client.api import Client  # noqa: E402
from mld_core.service.client.sealed import LocalFile, SealedRank  # noqa: E402
from mld_core.service.client.uploader import Uploader  # noqa: E402

RATE = 200


def durable_copy(source: Path, target: Path) -> None:
    """Copy a file and make it durable."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def hashed_copy(source: Path, target: Path) -> None:
    """Read, hash, write, make durable: what content addressing costs without a network."""
    state = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(1 << 20):
            state.update(piece)
            write.write(piece)
        write.flush()
        os.fsync(write.fileno())


def one_round(client: Client, file: LocalFile, folder: Path) -> dict[str, float]:
    """Seconds of the three ways with one file, while no file is checked."""
    while "mld_checks_waiting 0.0" not in client_text(client):
        time.sleep(0.1)
    return {
        "copy": seconds(lambda: durable_copy(file.path, folder / "copy")),
        "hashed": seconds(lambda: hashed_copy(file.path, folder / "hashed")),
        "upload": seconds(lambda: client.upload(file.path, file.sha256, file.bytes)),
    }


def client_text(client: Client) -> str:
    """The server's metrics."""
    with client.send("GET", "/metrics") as response:
        return response.text


def uploads(server: ServerProcess, folder: Path, megabytes: int, rounds: int) -> list[list[str]]:
    """Rows of the table: size, MB/s of copy, hashed copy and upload, ratio."""
    client = Client(server.url, server.key)
    found: dict[str, list[float]] = {"copy": [], "hashed": [], "upload": []}
    for number in range(rounds + 1):
        source = folder / "source"
        source.write_bytes(os.urandom(megabytes << 20))
        durable_copy(source, folder / "warm")
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        file = LocalFile(source, digest, source.stat().st_size)
        times = one_round(client, file, folder)
        if number:  # the first round warms up
            for name, taken in times.items():
                found[name].append(taken)
        for name in ("copy", "hashed", "warm"):
            (folder / name).unlink(missing_ok=True)
    middle = {name: statistics.median(values) for name, values in found.items()}
    ratios = [copy / upload for copy, upload in zip(found["copy"], found["upload"], strict=True)]
    speed = {name: f"{megabytes / value:.0f}" for name, value in middle.items()}
    return [
        [
            f"{megabytes} MiB",
            speed["copy"],
            speed["hashed"],
            speed["upload"],
            f"{statistics.median(ratios):.2f}",
            f"{middle['hashed'] / middle['upload']:.2f}",
        ]
    ]


def small_passes(server: ServerProcess, folder: Path, passes: int, rounds: int) -> list[list[str]]:
    """Rows of the table: passes a second through `mld sync`'s uploader, and of their files written and fsynced.

    With the processor time a pass takes of the server and its check process: a busy machine changes it less.
    """
    factory = store_factory.StoreFactory(folder / "small")
    run = factory.run("small")
    for epoch in range(passes):
        factory.add_pass(run, "val", store_factory.make_data(100, seed=epoch), n_epoch=epoch)
    written, sent, spent = [], [], []
    for number in range(rounds + 1):
        before = processor_times(server)
        job = Uploader(
            factory.store, Client(server.url, server.new_key("read", "write", organization=f"{number}"))
        )
        ranks = job.plan([run])
        copies = folder / f"copies{number}"
        first = seconds(lambda ranks=ranks, copies=copies: written_files(ranks, copies))
        second = seconds(
            lambda job=job, ranks=ranks: [one for one in job.send_all(ranks) if one.state != "uploaded"]
        )
        if number:  # the first round warms up
            written.append(first)
            sent.append(second)
            spent.append([after - was for was, after in zip(before, processor_times(server), strict=True)])
        shutil.rmtree(copies)
    ratios = [first / second for first, second in zip(written, sent, strict=True)]
    files, size = (
        sum(len(rank.files) + 1 for rank in ranks),
        sum(rank.bytes + len(rank.text) for rank in ranks),
    )
    what = f"{passes} passes, {files} files, {size / 1e6:.1f} MB"
    speeds = [f"{passes / statistics.median(taken):.0f}" for taken in (written, sent)]
    costs = [f"{statistics.median(each) / passes * 1000:.1f}" for each in zip(*spent, strict=True)]
    return [[what, *speeds, f"{statistics.median(ratios):.2f}", *costs]]


def processor_times(server: ServerProcess) -> tuple[float, float]:
    """Seconds of processor time the server's process and those it started have taken."""
    one = psutil.Process(server.process.pid)
    spent = [sum(process.cpu_times()[:2]) for process in (one, *one.children(recursive=True))]
    return spent[0], sum(spent[1:])


def written_files(ranks: list[SealedRank], target: Path) -> None:
    """Write the files of ranks, a folder each, and make files and folders durable."""
    target.mkdir()
    for number, rank in enumerate(ranks):
        folder = target / str(number)
        folder.mkdir()
        for file in (*(one.path for one in rank.files), rank.folder / "seal.json"):
            durable_copy(file, folder / f"{file.parent.name}-{file.name}")
        fsync_dir(folder)


def read_loop(url: str, key: str, paths: list[str], duration: float) -> None:
    """Run in a process of its own: prints how late each answer was, in seconds."""
    count = int(RATE * duration)
    begun = time.perf_counter() + 0.5
    late = [0.0] * count
    turn = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        session = requests.Session()
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {key}"
        while True:
            with lock:
                number = next(turn, None)
            if number is None:
                return
            due = begun + number / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            answer = session.get(url + paths[number % len(paths)], timeout=30)
            answer.raise_for_status()
            late[number] = time.perf_counter() - due

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begun
    ordered = sorted(late)
    print(
        f"{count / took:.0f} {ordered[count // 2] * 1000:.1f} {ordered[int(count * 0.99)] * 1000:.1f} {ordered[-1] * 1000:.1f}"
    )


def reads(server: ServerProcess, folder: Path, duration: float) -> list[list[str]]:
    """Rows of the table: requests a second that were answered, p50, p99, slowest."""
    factory = store_factory.StoreFactory(folder / "store")
    api = server.api()
    run_id = api.sync(factory.store, factory.standard())
    for number in range(50):
        api.run("many", f"v{number}")
    one = api.get(f"/v1/runs/{run_id}/passes")["items"][0]["pass_id"]
    kinds = {
        "one run": [f"/v1/runs/{run_id}"],
        "passes of a run": [f"/v1/runs/{run_id}/passes"],
        "one pass with files": [f"/v1/runs/{run_id}/passes/{one}"],
        "all in turn, and a list of 50 runs": [
            f"/v1/runs/{run_id}",
            "/v1/runs?limit=50",
            f"/v1/runs/{run_id}/passes",
            f"/v1/runs/{run_id}/passes/{one}",
            "/v1/whoami",
        ],
    }
    rows = []
    for name, paths in kinds.items():
        command = [sys.executable, __file__, "--reader", server.url, server.key, str(duration), *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append([name, *done.stdout.split()])
    return rows


def told_nothing(arguments: list[str], environment: dict[str, str]) -> None:
    """Run an `mld` command; what it prints goes nowhere."""
    command = [sys.executable, "-m", "mld_core.cli.main", *arguments]
    subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, check=False
    )


def children_time() -> float:
    """Seconds of processor time of the commands that ended: a busy machine changes them less."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def evaluated_run(server: ServerProcess, folder: Path, environment: dict[str, str]) -> None:
    """A run "shown" "v1" whose result lies at the service."""
    factory = store_factory.StoreFactory(folder / "shown")
    run = factory.run("shown", "v1", n_class=6)
    data = planted(store_factory, 4000, seed=2, noise=0.06, broken=0.08).data
    factory.add_pass(run, "val", data, n_epoch=0)
    job = Uploader(factory.store, Client(server.url, server.key))
    assert {one.state for one in job.send_all(job.plan([run]))} == {"uploaded"}
    command = [sys.executable, "-m", "mld_core.cli.main", "evaluate", "shown", "v1"]
    subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)


def many_runs(server: ServerProcess, folder: Path, number: int) -> list[list[str]]:
    """Rows of the table: milliseconds of a page of very many runs, and of the commands that read one."""
    api = server.api()
    run_id = api.run("lists", "first", task="classification")
    with sqlite3.connect(server.data / "mld.sqlite3", timeout=60) as database:
        columns = [row[1] for row in database.execute("pragma table_info(runs)") if row[1] != "pk"]
        (first,) = database.execute(f"select {','.join(columns)} from runs where id = ?", (run_id,))
        template = dict(zip(columns, first, strict=True))
        rows = (
            template
            | {"id": f"run_{one:024x}", "model_name": f"lists{one % 50}", "version_name": f"v{one}"}
            | {"search": f"lists{one % 50}\nv{one}"}
            for one in range(number)
        )
        marks = ",".join(f":{name}" for name in columns)
        database.executemany(f"insert into runs ({','.join(columns)}) values ({marks})", rows)
    asked = {
        "the newest 100": {"order": "newest"},
        "of one model": {"order": "newest", "model_name": "lists7"},
        "a part of a name": {"order": "newest", "name": "v4999"},
        "a name nobody has": {"name": "nobody's"},
    }
    table = []
    for name, params in asked.items():
        taken = sorted(seconds(lambda params=params: api.get("/v1/runs", params=params)) for _ in range(100))
        table.append([f"{name} of {number:,} runs", f"{taken[50] * 1000:.1f}", f"{taken[98] * 1000:.1f}"])
    environment = {**os.environ, "MLD_API_ENDPOINT": server.url, "MLD_API_KEY": server.key}
    environment["MLD_HOME"] = str(folder / "home")
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
    evaluated_run(server, folder, environment)
    for arguments in (["ls", "--remote"], ["show", "shown", "v1"]):
        before = children_time()
        taken = sorted(seconds(lambda words=arguments: told_nothing(words, environment)) for _ in range(7))
        spent = (children_time() - before) / 7 * 1000
        name = f"`mld {' '.join(arguments)}`, the whole process ({spent:.0f} ms of processor time)"
        table.append([name, f"{taken[3] * 1000:.0f}", f"{taken[-1] * 1000:.0f}"])
    return table


def main() -> None:
    """Measure and print, or write into docs/performance.md."""
    if sys.argv[1:2] == ["--reader"]:
        url, key, duration, *paths = sys.argv[2:]
        read_loop(url, key, paths, float(duration))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=7, help="of which the medians are told")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; each is short and a table")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args()
    for name in options.only or PARTS:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix="mld-bench-") as folder:
            data, workers = Path(folder) / "data", int(name == "lists")  # what evaluates the result shown
            server = ServerProcess(data, workers=workers, log_level="warning", check_processes=1)
            try:
                head, rows = PARTS[name](server.start(), Path(folder), options)
            finally:
                server.stop()
        table = markdown(head, rows)
        table += (
            f"\n\nLoad average before {load:.1f}, after {os.getloadavg()[0]:.1f}, niceness {os.nice(0)}. "
        )
        asked = f"--only {name} --rounds {options.rounds} --write"
        table += f"Command: `python tests/benchmarks/bench_service.py {asked}`."
        print(table, flush=True)
        if options.write:
            title = "## Service\n\n" if name == "uploads" else ""
            write_section("performance.md", f"service-{name}", title + table)


Table = tuple[list[str], list[list[str]]]
"""The head of a table and its rows."""


def uploads_part(server: ServerProcess, folder: Path, options: argparse.Namespace) -> Table:
    """Large files."""
    head = [
        "file",
        "copy MB/s",
        "hash and copy MB/s",
        "upload MB/s",
        "upload / copy",
        "upload / hash and copy",
    ]
    sizes = [16] if options.quick else [64, 256]
    return head, [row for size in sizes for row in uploads(server, folder, size, options.rounds)]


def passes_part(server: ServerProcess, folder: Path, options: argparse.Namespace) -> Table:
    """Small passes."""
    head = ["small passes", "written and fsynced, a second", "sent, a second", "sent / written"]
    head += ["server's CPU, ms a pass", "check's CPU, ms a pass"]
    return head, small_passes(
        server, folder, 20 if options.quick else 100, 1 if options.quick else options.rounds
    )


def reads_part(server: ServerProcess, folder: Path, options: argparse.Namespace) -> Table:
    """Metadata."""
    head = [f"reads, {RATE}/s asked for", "answered/s", "p50 ms", "p99 ms", "slowest ms"]
    return head, reads(server, folder, 2 if options.quick else 10)


def lists_part(server: ServerProcess, folder: Path, options: argparse.Namespace) -> Table:
    """Lists of very many runs."""
    head = ["lists", "p50 ms", "p99 ms (of commands: the slowest of 7)"]
    return head, many_runs(server, folder, 5000 if options.quick else 50_000)


PARTS = {"uploads": uploads_part, "passes": passes_part, "reads": reads_part, "lists": lists_part}


if __name__ == "__main__":
    main()
