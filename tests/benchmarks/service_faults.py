"""The service under faults: many clients upload while everything around them is killed; then every row is counted.

    python tests/benchmarks/service_faults.py [--on files|s3] [--clients 32] [--megabytes 2048] [--write]

Real processes throughout: a server (on SQLite and a folder, or on PostgreSQL and an S3 server), a worker, the clients
(each has a store of its own and does what `mld sync` does, again and again until all is there). While they upload, the
server is SIGKILLed and started again three times, its worker is SIGKILLed, PostgreSQL is restarted, the S3 server is
SIGKILLed and started again, and the disk is filled up once. At the end every file of every sealed rank is downloaded,
its SHA-256 compared with the client's disk, and its rows counted by their keys.
The disk that is filled is a tmpfs, so that filling it harms nobody: this needs root; without, that fault is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from _table import markdown, write_section

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "parts"), str(ROOT / "tests" / "parts" / "data")]

import store_factory  # noqa: E402
from server_parts import Api, Postgres, S3Server, ServerProcess, rank_folders, wait_for  # noqa: E402

from mld_core.evaluation.errors import AuthenticationError  # noqa: E402
from mld_core.records.format.layout import RunKey, Store  # noqa: E402
from mld_core.service.client.api import Client  # noqa: E402
from mld_core.service.client.transport import Patience  # noqa: E402
from mld_core.service.client.uploader import Uploader  # noqa: E402

WIDTH = 1024
PASSES = 4
MIB = 1 << 20


def record(root: Path, number: int, megabytes: float) -> None:
    """Write a store with one run: passes of two ranks, random features."""
    factory = store_factory.StoreFactory(root)
    run = factory.run("faults", f"client-{number}")
    rows = max(64, int(megabytes * MIB / PASSES / (WIDTH * 2)))
    for epoch in range(PASSES):
        made = store_factory.make_data(rows, seed=number * 100 + epoch)
        made.features = (
            np.random.default_rng(number * 100 + epoch).normal(size=(rows, WIDTH)).astype(np.float32)
        )
        factory.add_pass(run, "val", made, n_epoch=epoch, world_size=2, batch=512)


def client(root: str, url: str) -> None:
    """One client process: sync until everything is there; prints what it took as JSON."""
    store, key = Store(root), os.environ["MLD_API_KEY"]
    sent = goes = unreachable = 0
    begun = time.monotonic()
    while True:
        goes += 1
        failed = False
        try:
            sync = Uploader(store, Client(url, key, Patience(seconds=20)))
            for row in map(sync.send, sync.plan(store.runs())):
                sent += row.bytes
                failed = failed or row.state == "failed"
        except ConnectionError:
            unreachable += 1
            failed = True
        except AuthenticationError as error:
            raise SystemExit(str(error)) from error
        if not failed:
            break
        time.sleep(random.uniform(0.2, 1.0))
    took = time.monotonic() - begun
    print(json.dumps({"sent": sent, "goes": goes, "unreachable": unreachable, "seconds": took}))


@dataclass
class Behind:
    """What a server stands on besides its own folder: nothing, or PostgreSQL and an S3 server."""

    postgres: Postgres | None = None
    s3: S3Server | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The server's."""
        if self.postgres is None or self.s3 is None:
            return {}
        place = {"storage": f"s3://{self.s3.bucket}/faults", "s3_endpoint": self.s3.url}
        return {"database": self.postgres.url, **place}

    def stop(self) -> None:
        """End both."""
        if self.postgres is not None and (self.postgres.folder / "data" / "postmaster.pid").exists():
            self.postgres.down("immediate")
        if self.s3 is not None and hasattr(self.s3, "process"):
            self.s3.stop()


class Faults:
    """What goes wrong, one thing after another, at shares of the bytes that have arrived."""

    def __init__(self, server: ServerProcess, behind: Behind, disk: Path | None, total: int) -> None:
        self.server, self.disk, self.total = server, disk, total
        self.postgres, self.s3 = behind.postgres, behind.s3
        self.told: list[str] = []
        self.job = ""
        self._begun = time.monotonic()

    def _arrived(self) -> float:
        folder = self.s3.folder / "objects" if self.s3 is not None else self.server.data / "blobs"
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / self.total

    def run(self) -> None:
        """All of them."""
        plan = [(0.1, self.kill_server), (0.25, self.restart_postgres), (0.33, self.kill_s3)]
        plan += [(0.4, self.kill_server)]
        plan += [(0.5, self.fill_disk), (0.65, self.kill_worker), (0.8, self.kill_server)]
        for share, fault in plan:
            while self._share() < share:
                time.sleep(0.1)
            fault()

    def _share(self) -> float:
        try:
            return self._arrived()
        except OSError:  # a file that was moved just now
            return 0.0

    def _tell(self, what: str) -> None:
        self.told.append(f"{time.monotonic() - self._begun:.0f} s: {what}")
        print(self.told[-1], flush=True)

    def kill_server(self) -> None:
        """SIGKILL, two seconds of nothing, a new one on the same port."""
        self.server.kill()
        time.sleep(2)
        self.server.start()
        self._tell(f"server SIGKILLed and started again, {self._share():.0%} had arrived")

    def restart_postgres(self) -> None:
        """A fast restart: all connections are cut."""
        if self.postgres is not None:
            self.postgres.down("fast")
            time.sleep(1)
            self.postgres.up()
            self._tell("PostgreSQL restarted")

    def kill_s3(self) -> None:
        """SIGKILL, two seconds of nothing, a new one on the same port."""
        if self.s3 is not None:
            self.s3.kill()
            time.sleep(2)
            self.s3.start()
            self._tell(f"S3 server SIGKILLed and started again, {self._share():.0%} had arrived")

    def kill_worker(self) -> None:
        """SIGKILL to the worker while it runs an evaluation (which ends with it)."""
        api = self.server.api()
        self.job = _job(self.server, self.server.data.parent.parent / "evaluated")
        wait_for(lambda: api.get(f"/v1/jobs/{self.job}")["state"] == "running", 120)
        for one in psutil.Process(self.server.process.pid).children():
            if "mld_core.service.server.jobs.worker" in " ".join(one.cmdline()):
                one.kill()
                self._tell("worker SIGKILLed at work")

    def fill_disk(self) -> None:
        """Fill the server's disk for five seconds."""
        if self.disk is not None:
            filler = self.disk / "filler"
            with filler.open("wb") as file:
                try:
                    while True:
                        file.write(b"x" * MIB)
                except OSError:
                    pass
            time.sleep(5)
            filler.unlink()
            self._tell("disk full for five seconds")


def verify(api: Api, roots: list[Path]) -> dict[str, int]:
    """Compare the service with the clients' disks, file by file and row by row.

    Raises:
        AssertionError: something is missing, doubled or different.
    """
    counted = {"ranks": 0, "files": 0, "rows": 0, "bytes": 0}
    for root in roots:
        store = Store(root)
        (run,) = store.runs()
        runs = api.get("/v1/runs", params={"model_name": run.model_name, "version_name": run.version_name})[
            "items"
        ]
        assert len(runs) == 1, (run, len(runs))
        there = _on_server(api, runs[0]["run_id"])
        here = _on_disk(store, run)
        assert there.keys() == here.keys(), f"{run}: {there.keys() ^ here.keys()}"
        for place, files in here.items():
            assert there[place] == files, place
            counted["ranks"] += 1
            counted["files"] += len(files)
        for place, files in here.items():
            keys: list[tuple[int, int]] = []
            for (_, family), (sha256, size, rows) in files.items():
                content = api("GET", f"/v1/blobs/{sha256}").content
                assert hashlib.sha256(content).hexdigest() == sha256
                assert len(content) == size
                counted["bytes"] += size
                if family == "samples":
                    table = pq.read_table(io.BytesIO(content), columns=["rank_", "unit"])
                    assert table.num_rows == rows
                    keys += list(zip(*table.to_pydict().values(), strict=True))
            assert len(set(keys)) == len(keys), f"{place}: rows twice"
            counted["rows"] += len(keys)
    return counted


Place = tuple[str, int | None, int, str, int]
Files = dict[tuple[str, str], tuple[str, int, int]]


def _on_server(api: Api, run_id: str) -> dict[Place, Files]:
    found: dict[Place, Files] = {}
    for one in api.get(f"/v1/runs/{run_id}/passes", params={"limit": 1000})["items"]:
        assert one["sealed"], one
        for rank in api.get(f"/v1/runs/{run_id}/passes/{one['pass_id']}")["ranks"]:
            place = (one["dataset_type"], one["n_epoch"], one["pass_no"], rank["attempt"], rank["rank"])
            assert place not in found, f"{place} twice"
            found[place] = {
                (file["part"], file["family"]): (file["sha256"], file["bytes"], file["rows"])
                for file in rank["files"]
            }
            assert len(found[place]) == len(rank["files"]), f"{place}: a file twice"
    return found


def _on_disk(store: Store, run: RunKey) -> dict[Place, Files]:
    found: dict[Place, Files] = {}
    for folder in rank_folders(store, run):
        seal = json.loads((folder / "seal.json").read_text())
        own = seal["attempt"]
        place = (own["dataset_type"], own["n_epoch"], own["pass_no"], own["attempt"], own["rank"])
        found[place] = {
            (part["name"], family): (info["sha256"], info["bytes"], info["rows"])
            for part in seal["parts"]
            for family, info in part["files"].items()
        }
    return found


def prepare(folder: Path, clients: int, megabytes: int) -> list[Path]:
    """The clients' stores."""
    roots = [folder / f"client-{number}" for number in range(clients)]
    for number, root in enumerate(roots):
        record(root, number, megabytes / clients)
    return roots


def upload(server: ServerProcess, roots: list[Path], faults: Faults) -> list[dict[str, Any]]:
    """All clients at once, with faults; what each took."""
    breaking = threading.Thread(target=faults.run, daemon=True)
    breaking.start()
    command = [sys.executable, __file__, "--client"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLD_")}
    env |= {"OMP_NUM_THREADS": "1", "MLD_API_KEY": server.key}
    processes = [
        subprocess.Popen([*command, str(root), server.url], stdout=subprocess.PIPE, text=True, env=env)
        for root in roots
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "a client gave up"
    breaking.join(timeout=120)
    assert not breaking.is_alive(), f"not all faults came to pass: {faults.told}"
    return [json.loads(text.strip().splitlines()[-1]) for text in outputs]


def main() -> None:
    """Run, verify, print or write into docs/reliability.md."""
    if sys.argv[1:2] == ["--client"]:
        client(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", choices=("files", "s3"), default="files", help="SQLite and files, or the two")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--megabytes", type=int, default=2048)
    parser.add_argument("--write", action="store_true", help="write the figures into docs/reliability.md")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mld-faults-"))
    disk = folder / "disk"
    disk.mkdir()
    size = int(options.megabytes * 1.5 + 400)
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", disk], capture_output=True, check=False
        ).returncode
        == 0
    )
    behind = Behind()
    if options.on == "s3":
        behind = Behind(Postgres(folder / "pg"), S3Server(folder / "s3"))
        missing = behind.postgres.missing or behind.s3.missing
        if missing:
            parser.error(missing)
    try:
        run(options, folder, disk if mounted else None, behind)
    finally:
        behind.stop()
        if mounted:
            subprocess.run(["umount", "-l", disk], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def run(options: argparse.Namespace, folder: Path, disk: Path | None, behind: Behind) -> None:
    """One whole fault run."""
    if behind.postgres is not None and behind.s3 is not None:
        folder.chmod(0o755)
        behind.postgres.start()
        behind.s3.start()
    roots = prepare(folder, options.clients, options.megabytes)
    total = sum(path.stat().st_size for root in roots for path in root.rglob("*.parquet"))
    print(f"{total / MIB:.0f} MiB in {options.clients} stores", flush=True)
    place = (disk or folder / "disk") / "data"
    server = ServerProcess(place, min_free_mb=32, log_level="warning", **behind.settings)
    server.env |= behind.s3.env if behind.s3 is not None else {}
    server.log = folder / "server.log"
    server.start()
    begun = time.monotonic()
    faults = Faults(server, behind, disk, total)
    took = upload(server, roots, faults)
    seconds = time.monotonic() - begun
    done = server.api().finished(faults.job, 300)
    counted = verify(server.api(), roots)
    server.stop()
    expected = sum(1 for root in roots for _ in root.rglob("seal.json"))
    assert counted["ranks"] == expected
    assert done["state"] == "done", done
    sent = sum(one["sent"] for one in took)
    rows = [
        ["clients", options.clients],
        ["uploaded", f"{total / MIB:.0f} MiB in {counted['files']} files, {counted['ranks']} sealed ranks"],
        [
            "rows counted at the end",
            f"{counted['rows']}, each once; {counted['bytes'] / MIB:.0f} MiB with the right SHA-256",
        ],
        ["missing, doubled, different", "0, 0, 0"],
        ["bytes sent more than once", f"{(sent - total) / total:+.1%} of all"],
        [
            "clients that had to go again",
            f"{sum(one['goes'] > 1 for one in took)} (at most {max(one['goes'] for one in took)} goes)",
        ],
        ["evaluation whose worker was killed", f"{done['state']} at attempt {done['attempts']}"],
        ["time", f"{seconds:.0f} s"],
    ]
    text = markdown(["what", "figure"], rows) + "\n\n" + "\n".join(f"* {line}" for line in faults.told)
    asked = f"--on {options.on} --clients {options.clients} --megabytes {options.megabytes} --write"
    text += f"\n\nCommand: `python tests/benchmarks/service_faults.py {asked}`"
    if disk is None:
        text += " (without root: the disk was not filled)"
    print(text)
    if options.write:
        on = "SQLite and files" if options.on == "files" else "PostgreSQL and an S3 server"
        heading = f"## The service under faults: {on}\n\n"
        write_section("reliability.md", f"service-faults-{options.on}", heading + text)


def _job(server: ServerProcess, folder: Path) -> str:
    """Ask for an evaluation that takes a while."""
    factory = store_factory.StoreFactory(folder)
    run_key = factory.run("evaluated", "v1")
    factory.add_pass(run_key, "val", store_factory.make_data(1000))
    run_id = server.api().sync(factory.store, run_key)
    return str(
        server.api()("POST", f"/v1/runs/{run_id}/evaluations", json={"options": {"repeats": 5}}).json()[
            "job_id"
        ]
    )


if __name__ == "__main__":
    main()
