"""What the parts of one server share, and what it does in the background."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import IO, Any

from sqlalchemy import insert
from sqlalchemy.exc import SQLAlchemyError

from mld_core.records.format.manifest import make_dirs
from mld_core.service.server.jobs.queue import Jobs
from mld_core.service.server.limits import Buckets
from mld_core.service.server.metrics import Metrics
from mld_core.service.server.proxies import Proxies
from mld_core.service.server.settings import Settings, to_env
from mld_core.service.server.storage.backends import open_storage
from mld_core.service.server.storage.checks import Checks
from mld_core.service.server.storage.collect import collect
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.keys import Authenticator
from mld_core.service.server.storage.models import Audit
from mld_core.service.server.storage.people import Sight
from mld_core.service.server.storage.ranks import Ranks
from mld_core.service.server.storage.removals import Remover
from mld_core.service.server.storage.seals import Sealer
from mld_core.service.server.storage.sweeps import Sweeper
from mld_core.service.server.storage.uploads import Uploads

log = logging.getLogger("mld.server")

_WRONG_KEYS_BURST = 50
_AUDIT_ROWS = 500
_HEALTH_SECONDS = 1.0
_AUDIT_SECONDS = 0.5
_SWEEP_SECONDS = 3600.0
_SETTLE_SECONDS = 1.0
_REAP_SECONDS = 2.0
_REMOVE_SECONDS = 1.0
_TIDY_SECONDS = 60.0


class Service:
    """Database, storage, uploads, checks, jobs, limits and metrics of one server process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url)
        self.storage = open_storage(settings)
        self.uploads = Uploads(settings, self.database, self.storage)
        self.checks = Checks(settings, self.database, self.storage)
        self.sealer = Sealer(self.database, self.storage, self.checks)
        self.ranks = Ranks(settings, self.database, self.storage, self.uploads, self.checks, self.sealer)
        self.remover = Remover(self.database, self.storage)
        self.sweeper = Sweeper(self.database, self.storage, settings.folder("removing"))
        self.jobs = Jobs(self.database, settings.lease_seconds, settings.jobs_at_once)
        self.keys = Authenticator(self.database)
        self.sight = Sight(self.database)
        self.proxies = Proxies(settings.trusted_proxies, settings.user_header)
        self.metrics = Metrics()
        self.requests = Buckets(settings.requests_per_second, settings.requests_per_second * 2)
        self.wrong_keys = Buckets(settings.wrong_keys_per_second, _WRONG_KEYS_BURST)
        self.tidied: list[Callable[[], None]] = []
        """Called after what was removed went out of the files, and now and then."""
        self.ending: Callable[[], bool] = lambda: False
        """Whether the server is about to end: answers that go on for long end, too."""
        self._audit: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._looking = threading.Lock()
        self._looked_at = float("-inf")
        self._health: dict[str, bool] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Begin the background work."""
        shutil.rmtree(self.settings.folder("pages"), ignore_errors=True)  # of a server that was killed
        self.ranks.recover()
        self.checks.start()
        background = (self._write_audit, self._settle, self._look_after_jobs, self._sweep, self._remove)
        for work in (*background, *self._worker_keepers()):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the background work and the workers; what is under way stays to be continued."""
        self._stop.set()
        for process in self._workers:
            if process.stdin is not None:
                process.stdin.close()
        for process in list(self._workers):
            _ended(process)
        self.checks.stop()
        for thread in self._threads:
            thread.join(timeout=5)
        self.database.close()

    def health(self) -> dict[str, bool]:
        """What works; looked at once a second at most, since strangers may ask and a probe is written."""
        with self._looking:
            if time.monotonic() - self._looked_at > _HEALTH_SECONDS:
                self._health = {
                    "database": self.database.reachable(),
                    "storage": self.storage.ready(),
                    "writable": self.uploads.writable() and self.database.writable(),
                }
                self._looked_at = time.monotonic()
            return self._health

    def audit(self, **row: Any) -> None:
        """Note who wrote what. The log line of the request has it too, should the server be killed."""
        self._audit.put(row)

    def _write_audit(self) -> None:
        while True:
            stopping = self._stop.wait(_AUDIT_SECONDS)
            rows = [self._audit.get_nowait() for _ in range(min(_AUDIT_ROWS, self._audit.qsize()))]
            if rows:
                what = f"{len(rows)} rows of the audit are in this log only"
                with self._told(what), self.database.write() as session:
                    session.execute(insert(Audit), rows)
            elif stopping:
                return

    def _look_after_jobs(self) -> None:
        while not self._stop.wait(_REAP_SECONDS):
            with self._told("jobs could not be looked after"):
                self.jobs.reap()

    def _settle(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(_SETTLE_SECONDS)
            with self._told("files of ranks are not durable but in their packs"):
                self.ranks.settle()

    @staticmethod
    @contextmanager
    def _told(what: str) -> Iterator[None]:
        """Tell of a database or a disk that failed, and go on."""
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            log.warning("%s (%s)", what, type(error).__name__)

    def _sweep(self) -> None:
        while not self._stop.is_set():
            with self._told("what nobody needs could not be removed"):
                removed = self.uploads.sweep()
                if removed:
                    log.info("removed %d unfinished uploads that nobody continued", removed)
                if self.settings.unsealed_days > 0:
                    blobs, size = collect(self.database, self.storage, self.settings.unsealed_days)
                    if blobs:
                        log.info("removed %d files (%d bytes) that nobody sealed", blobs, size)
            self._stop.wait(_SWEEP_SECONDS)

    def _remove(self) -> None:
        tidied = time.monotonic()
        while not self._stop.wait(_REMOVE_SECONDS):
            with self._told("what was removed is not yet out of the files"):
                if self.sweeper.sweep() or time.monotonic() - tidied > _TIDY_SECONDS:
                    tidied = time.monotonic()
                    for tidy in self.tidied:
                        tidy()

    def _worker_keepers(self) -> list[Any]:
        return [self._keep_worker] * self.settings.workers

    def _keep_worker(self) -> None:
        """Keep one worker process alive."""
        command = [sys.executable, "-m", "mld_core.service.server.jobs.worker", "--with-parent"]
        pause = 1.0
        while not self._stop.is_set():
            process = subprocess.Popen(command, stdin=subprocess.PIPE, env=_worker_env(self.settings))  # noqa: S603
            self._workers.append(process)
            process.wait()
            self._workers.remove(process)
            if not self._stop.is_set():
                log.warning("the worker ended (exit code %s) and is started again", process.returncode)
                self._stop.wait(pause)
                pause = min(60.0, pause * 2)


def _ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _worker_env(settings: Settings) -> dict[str, str]:
    return {**os.environ, **to_env(settings)}


def lock_data(settings: Settings) -> IO[str]:
    """Take the data folder for this process; keep what is returned open.

    Raises:
        BlockingIOError: another server has it.
    """
    make_dirs(settings.data)
    settings.data.chmod(0o700)
    file = (settings.data / "server.lock").open("w", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise BlockingIOError(
            error.errno,
            f"another server runs on {settings.data}: stop it, or give this one another --data",
        ) from error
    return file
