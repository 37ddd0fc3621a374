"""Runs the check of uploaded files in processes of their own and notes the verdicts.

A blob is checked soon after it is complete; a seal waits for the checks of its files. Blobs that a killed
server left unchecked are checked when it starts again, or when a seal asks for them.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from mld_core.service.server.children import Child
from mld_core.service.server.problems import ProblemError
from mld_core.service.server.settings import MIB, Settings
from mld_core.service.server.storage.backends import Storage
from mld_core.service.server.storage.collect import discard
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import Blob, Organization

log = logging.getLogger("mld.server")

_FLUSH = 64
_IDLE = 0.05
_DIED = "its check took more memory or time than is allowed"
_START_SECONDS = 60.0
_MANIFEST_SECONDS = 45.0

Place = tuple[int, str]
"""An organization's key in the database, and a digest."""


class CheckDied(Exception):  # noqa: N818 - an event, not a fault of ours
    """The process died, or took too long, over a file."""


class CheckProcess(Child):
    """One process that checks files."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        memory = str(settings.check_memory_mb * MIB)
        super().__init__("mld_core.service.server.storage.check_part", memory, env={"OMP_NUM_THREADS": "1"})

    def check(self, path: str, kind: str = "blob", **more: Any) -> dict[str, Any]:
        """The verdict on a file, or what else one of `check_part`'s kinds finds.

        Raises:
            CheckDied: it took the process down.
        """
        try:
            if not self.running:
                self.start()
                self._answer(_START_SECONDS)
            seconds = self._settings.check_seconds
            limits = {"max_rows": self._settings.max_rows, "max_ratio": self._settings.max_ratio}
            decoded = self._settings.max_decoded_mb * MIB
            asked = {"path": path, "kind": kind, "seconds": seconds, "max_decoded": decoded}
            self.say({**asked, **limits, **more})
            return self._answer(seconds * 4 + 10)
        except (OSError, CheckDied) as error:
            self.stop()
            raise CheckDied from error

    def _answer(self, seconds: float) -> dict[str, Any]:
        found = self.event(seconds)
        if not found:
            raise CheckDied
        return found


class Checks:
    """The queue of blobs to check, and the threads that work it off."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._queue: queue.PriorityQueue[tuple[int, float, Place, str]] = queue.PriorityQueue()
        self._pending: set[Place] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self._manifests = CheckProcess(settings)
        self._reading = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"check-{number}", daemon=True)
            for number in range(settings.check_processes)
        ]

    def start(self) -> None:
        """Start the threads and queue what was left unchecked."""
        for thread in self._threads:
            thread.start()
        with self._database.read() as session:
            rows = session.execute(
                select(Blob.organization_pk, Organization.id, Blob.sha256)
                .join(Organization, Organization.pk == Blob.organization_pk)
                .where(Blob.state == "stored")
            ).all()
        for organization_pk, organization_id, sha256 in rows:
            self.submit(organization_pk, organization_id, sha256)

    def stop(self) -> None:
        """End the threads; what is queued stays unchecked."""
        self._stopping = True
        for _ in self._threads:
            self._queue.put((-1, 0.0, (0, ""), ""))
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=5)
        with self._reading:
            self._manifests.stop()

    @property
    def waiting(self) -> int:
        """Blobs that are not checked yet."""
        return len(self._pending)

    def submit(
        self, organization_pk: int, organization_id: str, sha256: str, *, urgent: bool = False
    ) -> None:
        """Queue a blob; urgent ones come first."""
        place = (organization_pk, sha256)
        with self._changed:
            if place in self._pending and not urgent:
                return
            self._pending.add(place)
        self._queue.put((0 if urgent else 1, time.monotonic(), place, organization_id))

    def wait(
        self, organization_pk: int, organization_id: str, digests: Iterable[str], seconds: float
    ) -> bool:
        """Wait until these blobs are checked; False if some are not after `seconds`."""
        places = {(organization_pk, sha256) for sha256 in digests}
        for place in places:
            self.submit(organization_pk, organization_id, place[1], urgent=True)
        with self._changed:
            return self._changed.wait_for(lambda: not places & self._pending, timeout=seconds)

    def manifest(self, path: Path, kind: str = "manifest", **more: Any) -> dict[str, Any]:
        """What a check process finds in a manifest; one is read at a time, they are small or refused.

        Raises:
            ProblemError: others are read for too long (503).
        """
        return self._read(path, kind, **more) or {"ok": False, "reason": _DIED}

    def rank(self, pack: Path, files: list[tuple[str, int, int]]) -> dict[str, Any]:
        """What a check process finds in a whole rank: (digest, start, bytes) of its files, the manifest last.

        Returns:
            `manifest`, as of `manifest`, and `verdicts` by digest.

        Raises:
            ProblemError: as `manifest`.
        """
        found = self._read(pack, "rank", files=files) or self._read(pack, "rank", files=files)
        if found is None:
            refused = {"ok": False, "reason": _DIED}
            return {"manifest": refused, "verdicts": {sha256: refused for sha256, _, _ in files}}
        return found

    def _read(self, path: Path, kind: str, **more: Any) -> dict[str, Any] | None:
        if not self._reading.acquire(timeout=_MANIFEST_SECONDS):
            raise ProblemError(
                "check-pending",
                "the manifests before this one are not read yet",
                expectation="a manifest that was read",
                fix="send the seal again",
                retry_after=2,
            )
        try:
            return self._manifests.check(str(path), kind, **more)
        except CheckDied:
            return None
        finally:
            self._reading.release()

    def there(self, organization_id: str, sha256: str) -> bool:
        """Whether a blob's content is in the storage."""
        return self._storage.exists(organization_id, sha256)

    def _work(self) -> None:
        process = CheckProcess(self._settings)
        found: dict[Place, dict[str, Any]] = {}
        while not self._stopping:
            try:
                _, _, place, organization_id = self._queue.get(timeout=_IDLE if found else None)
            except queue.Empty:
                self._note(found)
                found = {}
                continue
            if place in self._pending and place not in found:
                verdict = self._verdict(process, place, organization_id)
                if verdict is not None and verdict.get("mismatch"):
                    self._discard(place)
                elif verdict is not None:
                    found[place] = verdict
            if found and (len(found) >= _FLUSH or self._queue.empty()):
                self._note(found)
                found = {}
        process.stop()

    def _verdict(self, process: CheckProcess, place: Place, organization_id: str) -> dict[str, Any] | None:
        try:
            path = str(self._storage.local(organization_id, place[1]))
        except OSError as error:
            log.warning("blob %s can not be read to be checked (%s)", place[1], error)
            self._done({place})
            return None
        verdict = self._tried(process, path, place[1])
        if verdict is None and not self._stopping:
            # Once may be the machine's fault (out of memory); twice is the file's.
            log.warning("the check of blob %s died and is tried again", place[1])
            verdict = self._tried(process, path, place[1]) or {"ok": False, "reason": _DIED}
        if verdict is not None and verdict.pop("gone", False):
            self._done({place})
            return None
        return verdict

    def _discard(self, place: Place) -> None:
        """Remove a file that is not what its name says; who needs it is told that it is missing."""
        log.warning("the bytes of blob %s have another digest: they are discarded", place[1])
        try:
            discard(self._database, self._storage, *place)
        except (SQLAlchemyError, OSError) as error:
            log.warning("blob %s could not be discarded (%s)", place[1], type(error).__name__)
        self._done({place})

    @staticmethod
    def _tried(process: CheckProcess, path: str, sha256: str) -> dict[str, Any] | None:
        try:
            return process.check(path, sha256=sha256)
        except CheckDied:
            return None

    def _note(self, found: dict[Place, dict[str, Any]]) -> None:
        try:
            with self._database.write() as session:
                for (organization_pk, sha256), verdict in found.items():
                    state = "checked" if verdict["ok"] else "refused"
                    session.execute(
                        update(Blob)
                        .where(Blob.organization_pk == organization_pk, Blob.sha256 == sha256)
                        .values(state=state, facts=verdict)
                    )
        except SQLAlchemyError as error:
            # They stay "stored"; a seal queues them again.
            log.warning("verdicts on %d blobs could not be noted (%s)", len(found), type(error).__name__)
        self._done(set(found))

    def _done(self, places: set[Place]) -> None:
        with self._changed:
            self._pending -= places
            self._changed.notify_all()
