"""`mld worker`: takes evaluations from the queue and runs each in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import make_dirs, utc_now
from mld_core.records.format.parts import file_digest
from mld_core.service.server.jobs.evaluation_process import EvaluationProcess
from mld_core.service.server.jobs.materialise import lay_out
from mld_core.service.server.jobs.queue import Claim, Jobs
from mld_core.service.server.logs import setup_logs
from mld_core.service.server.settings import Settings, load_settings
from mld_core.service.server.storage.backends import FULL, Storage, open_storage
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import Blob, Organization, Result, ResultFile, new_id
from mld_core.service.server.storage.removals import removed_since, wanted_again

log = logging.getLogger("mld.worker")

_LOCK = "lock"
_POLL = 0.5
_BEAT = 1.0
_FULL_SECONDS = 5.0


class Lost(Exception):  # noqa: N818 - an event, not a fault of ours
    """The job was cancelled, or is no longer this worker's."""


class RemovedMeanwhile(Exception):  # noqa: N818 - an event, not a fault of ours
    """Samples were removed while they were evaluated."""


class Worker:
    """One worker: one evaluation at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.database_url)
        self._storage: Storage = open_storage(settings)
        self._jobs = Jobs(self._database, settings.lease_seconds)
        self._name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"[:120]
        self._process = EvaluationProcess(settings.job_memory)
        self._stopping = threading.Event()
        self._scratch = settings.folder("work") / self._name
        make_dirs(self._scratch, fsync=False)
        self._lock = _locked(self._scratch / _LOCK)

    def stop(self) -> None:
        """End after giving back the job in hand."""
        self._stopping.set()

    def run(self) -> None:
        """Work until stopped. A database that is away is waited for."""
        log.info("worker is up", extra={"worker": self._name, "database": repr(self._database)})
        self._process.start()
        sweep(self._settings.folder("work"))
        pause = _POLL
        while not self._stopping.is_set():
            try:
                self._jobs.reap()
                claim = self._jobs.claim(self._name)
                if claim is not None:
                    self._work(claim)
                pause = 0.0 if claim is not None else _POLL
            except SQLAlchemyError as error:
                log.warning("the database failed", extra={"error": type(error).__name__})
                pause = min(30.0, max(1.0, pause * 2))
            self._stopping.wait(pause)
        self._process.stop()
        self._database.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
        log.info("worker is down", extra={"worker": self._name})

    def _work(self, claim: Claim) -> None:
        log.info("job begins", extra={"job": claim.job_id, "attempt": claim.attempts})
        scratch = self._scratch / f"{claim.job_id}-{os.urandom(4).hex()}"
        make_dirs(scratch, fsync=False)
        try:
            self._evaluate(claim, scratch)
        except Lost:
            if self._stopping.is_set():
                self._jobs.give_back(claim, self._name)
            else:
                self._jobs.cancelled(claim, self._name)
        except RemovedMeanwhile:
            self._jobs.give_back(claim, self._name, "queued again: samples were removed meanwhile")
        except OSError as error:
            if error.errno in FULL:
                # No fault of the job's: it waits until there is room, however often that takes.
                log.warning("the disk is full", extra={"job": claim.job_id})
                self._jobs.give_back(claim, self._name, "waiting for room on the worker's disk")
                self._stopping.wait(_FULL_SECONDS)
                return
            log.exception("job failed", extra={"job": claim.job_id})
            self._jobs.died(
                claim, self._name, f"the worker could not read or write its files: {error.strerror}"
            )
        except SQLAlchemyError:
            raise
        except Exception as error:
            log.exception("job failed", extra={"job": claim.job_id})
            why = f"the worker failed with {type(error).__name__}; its log has the trace"
            self._jobs.died(claim, self._name, why)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        log.info("job ends", extra={"job": claim.job_id})

    def _evaluate(self, claim: Claim, scratch: Path) -> None:
        run = RunKey(claim.model_name, claim.version_name)
        store = self._laid_out(claim, run, scratch)
        work = {
            "root": str(scratch / "store"),
            "model_name": claim.model_name,
            "version_name": claim.version_name,
            "request": claim.request,
        }
        self._process.begin(work)
        try:
            event = self._last_event(claim)
        except Lost:
            self._process.stop()
            raise
        if event is None:
            why, text = self._process.death()
            log.error("the evaluation died", extra={"job": claim.job_id, "why": why, "stderr": text})
            self._jobs.died(claim, self._name, why)
        elif "full" in event:
            raise OSError(event["full"], os.strerror(event["full"]))
        elif "failed" in event:
            if event["failed"] == "MemoryError":
                self._process.stop()  # what is left of it is not trusted
            self._jobs.fail(claim, self._name, event["reason"], event["failed"])
        else:
            self._publish(claim, store.results_dir(run) / event["folder"])

    def _laid_out(self, claim: Claim, run: RunKey, scratch: Path) -> Store:
        """Lay the records out while the lease is kept."""
        made: queue.Queue[Store | Exception] = queue.Queue()

        def work() -> None:
            try:
                made.put(
                    lay_out(
                        self._database,
                        self._storage,
                        scratch / "store",
                        run_pk=claim.run_pk,
                        organization_id=claim.organization_id,
                        run=run,
                        info=claim.info,
                    )
                )
            except SQLAlchemyError as error:
                made.put(OSError(5, f"database: {type(error).__name__}"))
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                made.put(error)

        threading.Thread(target=work, daemon=True).start()
        while True:
            try:
                found = made.get(timeout=_BEAT)
            except queue.Empty:
                self._beat(claim, "fetching records", 0.0)
                continue
            if isinstance(found, Exception):
                raise found
            return found

    def _beat(self, claim: Claim, stage: str, progress: float) -> None:
        if self._stopping.is_set():
            raise Lost
        try:
            kept = self._jobs.beat(claim, self._name, stage, progress)
        except SQLAlchemyError:  # the lease tells whether this matters
            return
        if not kept:
            raise Lost

    def _last_event(self, claim: Claim) -> dict[str, Any] | None:
        """Keep the lease until the evaluation ends; how it did, or None if its process died."""
        stage, progress, beaten = "starting", 0.0, 0.0
        deadline = time.monotonic() + self._settings.job_seconds
        while True:
            event = self._process.event(_BEAT)
            if event is None or {"done", "failed", "full"} & event.keys():
                return event
            stage, progress = event.get("stage", stage), event.get("progress", progress)
            if "rows" in event:
                with contextlib.suppress(SQLAlchemyError):  # the lease tells whether this matters
                    self._jobs.counted(claim, self._name, event["rows"])
            if time.monotonic() > deadline:
                self._process.stop()
                limit = f"it took longer than {self._settings.job_seconds:.0f} s (MLD_SERVER_JOB_SECONDS)"
                return {"failed": "TimeoutError", "reason": limit}
            if time.monotonic() - beaten >= _BEAT:
                beaten = time.monotonic()
                self._beat(claim, stage, progress)

    def _publish(self, claim: Claim, folder: Path) -> None:
        """Store a result's files and note them together with the end of the job."""
        wanted = str(json.loads((folder / "result.json").read_text(encoding="utf-8"))["result_name"])
        given = claim.request.get("result_name") is not None
        if not self._has_room(claim, sum(path.stat().st_size for path in folder.iterdir())):
            full = f"the organization's quota of {self._settings.quota_gb} GiB is used up"
            self._jobs.fail(claim, self._name, full, "QuotaError")
            return
        number = 1
        while True:
            name = wanted if number == 1 else f"{wanted}_{number}"
            info = self._named(folder, name)
            files = [self._stored(claim, path) for path in sorted(folder.iterdir()) if path.is_file()]
            try:
                with self._database.write() as session:
                    if removed_since(session, claim.job_pk):
                        raise RemovedMeanwhile
                    result = Result(
                        id=new_id("result"),
                        run_pk=claim.run_pk,
                        result_name=name,
                        info=info,
                        created_at=utc_now(),
                    )
                    session.add(result)
                    session.flush()
                    self._note(session, claim, result.pk, files)
                    if not self._jobs.end(session, claim, self._name, "done", result.pk):
                        raise Lost
            except IntegrityError:
                if given and self._taken(claim, name):
                    self._jobs.fail(claim, self._name, f"result {name!r} exists", "ResultExistsError")
                    return
                number += self._taken(claim, name)
            else:
                return

    def _has_room(self, claim: Claim, size: int) -> bool:
        if self._settings.quota_gb <= 0:
            return True
        with self._database.read() as session:
            used = session.get_one(Organization, claim.organization_pk).blob_bytes
        return used + size <= self._settings.quota_gb * (1 << 30)

    def _taken(self, claim: Claim, name: str) -> bool:
        with self._database.read() as session:
            found = select(Result.pk).where(Result.run_pk == claim.run_pk, Result.result_name == name)
            return session.scalar(found) is not None

    @staticmethod
    def _named(folder: Path, name: str) -> dict[str, Any]:
        path = folder / "result.json"
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        info["result_name"] = name
        path.write_text(json.dumps(info, indent=1), encoding="utf-8")
        return info

    def _stored(self, claim: Claim, path: Path) -> tuple[str, str, int]:
        sha256 = file_digest(path)
        if not self._storage.exists(claim.organization_id, sha256):
            wanted_again(self._database, claim.organization_pk, [sha256])
            copy = path.parent.parent / f"copy-{sha256}"
            shutil.copyfile(path, copy)
            with copy.open("rb") as file:
                os.fsync(file.fileno())
            self._storage.take(claim.organization_id, sha256, copy)
        return path.name, sha256, path.stat().st_size

    @staticmethod
    def _note(session: Session, claim: Claim, result_pk: int, files: list[tuple[str, str, int]]) -> None:
        for name, sha256, size in files:
            blob = session.scalar(
                select(Blob).where(Blob.organization_pk == claim.organization_pk, Blob.sha256 == sha256)
            )
            if blob is None:
                place = {"organization_pk": claim.organization_pk, "sha256": sha256, "size": size}
                facts = {"ok": True, "result": True}
                blob = Blob(**place, state="checked", facts=facts, created_at=utc_now())
                session.add(blob)
                session.flush()
                grown = Organization.blob_bytes + size
                mine = update(Organization).where(Organization.pk == claim.organization_pk)
                session.execute(mine.values(blob_bytes=grown))
            session.add(ResultFile(result_pk=result_pk, blob_pk=blob.pk, name=name))


def _locked(path: Path) -> IO[str] | None:
    """Take a lock for as long as what is returned is open; None if another process has it."""
    file = path.open("a", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def sweep(folder: Path) -> int:
    """Remove what killed workers left behind; return how many there were."""
    removed = 0
    for path in folder.iterdir():
        lock = _locked(path / _LOCK) if path.is_dir() else None
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            lock.close()
            removed += 1
    return removed


def run_worker(settings: Settings, *, with_parent: bool = False) -> None:
    """Run one worker in this process until SIGTERM or SIGINT.

    Args:
        settings: where the database and the storage are.
        with_parent: end when stdin ends, as a server's own worker does.
    """
    setup_logs(settings.log_level)
    worker = Worker(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    if with_parent:

        def watch() -> None:
            sys.stdin.read()
            worker.stop()

        threading.Thread(target=watch, daemon=True).start()
    worker.run()


if __name__ == "__main__":
    run_worker(load_settings(), with_parent="--with-parent" in sys.argv)
