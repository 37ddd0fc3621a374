"""Uploading a sealed rank: its files, then its seal, which the service commits at once or not at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mld_core.records.format.layout import RunKey, Store
from mld_core.service.client.api import Client, OnBytes
from mld_core.service.client.blobs import upload_file
from mld_core.service.client.errors import ServiceError, ServiceUnreachableError
from mld_core.service.client.sealed import (
    LocalFile,
    SealedRank,
    is_noted,
    read_sealed,
    read_unsealed,
    service_id,
    write_note,
)
from mld_core.service.protocol import Whoami

State = Literal["uploaded", "there", "noted", "gone"]

_AT_ONCE = 4
_ROUNDS = 4
_CHECK_SECONDS = 1800.0
_LOCAL_FACTS = frozenset({"format", "model_name", "version_name"})  # not part of what a run is


@dataclass(frozen=True)
class Outcome:
    """What became of a rank: uploaded now, there already, known from its note, or gone from the disk."""

    state: State
    bytes_sent: int = 0
    files_sent: int = 0


class RankUploader:
    """Uploads ranks of one store to one service. One `upload` at a time.

    Args:
        store: where the ranks lie.
        client: the service.
        on_bytes: told, from any thread, how many bytes are through.
        on_problem: told of what does not stop an upload, e.g. a note that can not be written.
        me: what the service says about our key, where it was asked before.
    """

    def __init__(
        self,
        store: Store,
        client: Client,
        on_bytes: OnBytes | None = None,
        on_problem: Callable[[str], None] | None = None,
        me: Whoami | None = None,
    ) -> None:
        self._store, self._client = store, client
        self._on_bytes = on_bytes
        self._on_problem = on_problem or (lambda _message: None)
        self._me = me
        self._runs: dict[RunKey, tuple[str, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    @property
    def service(self) -> str:
        """The short name of the key's organization at this service; asks the service once.

        Raises:
            ServiceUnreachableError, AuthenticationError: it can not be asked.
        """
        if self._me is None:
            self._me = self._client.whoami()
        return service_id(self._client.url, str(self._me.get("organization_id", "")))

    def upload(self, folder: Path, *, trust_notes: bool = True) -> Outcome:
        """Upload one sealed rank and what it continues; a second time does nothing.

        Args:
            folder: the rank's folder.
            trust_notes: take a note's word for it; else ask the service about every file, also about those
                of a seal it has: it may have been restored from a backup that lacks them.

        Raises:
            ServiceUnreachableError, AuthenticationError, ServiceError: as `Client.send`; nothing of this rank
                was committed.
            DamagedFileError: a file is not what its manifest says.
            OSError: a file can not be read.
        """
        if trust_notes and is_noted(folder, self.service):
            return Outcome("noted")
        for _ in range(_ROUNDS):
            rank = read_sealed(folder)
            if rank is None:
                return Outcome("gone")
            try:
                for earlier in reversed(rank.earlier):
                    self._upload_cut(earlier, trust_notes=trust_notes)
                return self._upload(rank, ask=not trust_notes)
            except FileNotFoundError:
                # Its features were dropped while it was read: there is a new manifest now.
                again = read_sealed(folder)
                if again is not None and again.manifest == rank.manifest:
                    raise
        raise ServiceError(f"{folder} changes faster than it can be uploaded; try later", 0)

    def _upload_cut(self, folder: Path, *, trust_notes: bool) -> None:
        if trust_notes and is_noted(folder, self.service):
            return
        rank = read_unsealed(folder)
        if rank is not None:
            self._upload(rank, ask=not trust_notes)

    def _upload(self, rank: SealedRank, *, ask: bool) -> Outcome:
        run_id = self._run_id(rank.run)
        sent = self._send(list(rank.files), ask=True) if ask else 0
        files = 0
        for _ in range(_ROUNDS):
            state, missing = self._seal(run_id, rank)
            if not missing:
                self._note(rank, run_id)
                return Outcome("uploaded" if sent else state, sent, files)
            wanted = {file.sha256: file for file in rank.files if file.sha256 in missing}
            if not wanted:
                break
            sent += self._send(list(wanted.values()))
            files += len(wanted)
        raise ServiceUnreachableError(
            f"the service at {self._client.url} keeps missing files of {rank.label} that it took before"
        )

    def _send(self, files: list[LocalFile], *, ask: bool = False) -> int:
        """Upload files, a few at once.

        Raises:
            The first error; the others are stopped when the file they are at is through.
        """
        failed = threading.Event()

        def one(file: LocalFile) -> int:
            return 0 if failed.is_set() else upload_file(self._client, file, self._count, ask=ask)

        if len(files) < 2:
            return sum(one(file) for file in files)
        with ThreadPoolExecutor(min(_AT_ONCE, len(files)), "mld-upload") as pool:
            jobs = [pool.submit(one, file) for file in files]
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            if any(job.exception() is not None for job in done):
                failed.set()
        return sum(job.result() for job in jobs)

    def _count(self, count: int) -> None:
        if self._on_bytes is not None:
            with self._lock:
                self._on_bytes(count)

    def _seal(self, run_id: str, rank: SealedRank) -> tuple[State, set[str]]:
        """Ask for the seal: whether it is sealed now or was before, or which digests are missing."""
        opened = rank.opened
        body = {
            "dataset_type": opened.dataset_type,
            "n_epoch": opened.n_epoch,
            "pass_no": opened.pass_no,
            "attempt": opened.attempt,
            "rank": opened.rank,
            "manifest": rank.manifest,
            "opening": rank.opening,
        }
        until = time.monotonic() + _CHECK_SECONDS
        while True:
            try:
                status, _ = self._client.json_status("POST", f"/v1/runs/{run_id}/seals", body=body)
            except ServiceUnreachableError as error:  # noqa: PERF203 - asking again is the protocol
                if error.name != "check-pending" or time.monotonic() > until:
                    raise
                time.sleep(max(error.retry_after, 0.5))
            except ServiceError as error:
                missing = error.problem.get("missing")
                if error.name == "missing-blobs" and missing:
                    return "there", {str(digest) for digest in missing}
                if error.name != "seal-conflict":
                    raise
                self._settle(rank, error)
                return "there", set()
            else:
                return "uploaded" if status == 201 else "there", set()

    def _settle(self, rank: SealedRank, error: ServiceError) -> None:
        """The service holds this rank with other files: the same rows, where features were dropped here."""
        meta = rank.manifest.get("meta") or {}
        if not meta.get("features_dropped") and not meta.get("cut"):
            raise error
        self._on_problem(f"{rank.label}: the service holds a fuller copy, which stays")

    def _note(self, rank: SealedRank, run_id: str) -> None:
        facts = {"endpoint": self._client.url, "run_id": run_id, "bytes": rank.bytes}
        try:
            write_note(rank.folder, self.service, facts)
        except OSError as error:  # a store that is read-only, or pruned meanwhile
            self._on_problem(
                f"{rank.label} is uploaded, but that could not be noted ({error.strerror or error}); the "
                "next `mld sync` asks the service again"
            )

    def _run_id(self, run: RunKey) -> str:
        """The service's id of a run, which is told what run.json says now."""
        info = {name: value for name, value in self._store.run_info(run).items() if name not in _LOCAL_FACTS}
        known = self._runs.get(run)
        if known is None:
            names = {"model_name": run.model_name, "version_name": run.version_name}
            found = self._client.json("POST", "/v1/runs", body={**names, "info": info})
            known = (str(found["run_id"]), dict(found.get("info") or {}))
        run_id, there = known
        # Facts the service has stand, as in a local store; the generation is the newest of all.
        changes = {name: value for name, value in info.items() if name not in there}
        if int(info.get("generation") or 0) > int(there.get("generation") or 0):
            changes["generation"] = info["generation"]
        if changes:
            self._client.json("PATCH", f"/v1/runs/{run_id}", body={"info": changes})
        self._runs[run] = (run_id, {**there, **changes})
        return run_id
