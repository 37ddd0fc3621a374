"""The uploader: a sealed rank goes up as its files, then its seal, which the service commits whole or not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mld_core.evaluation.errors import AuthenticationError
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import FORMAT, utc_now, write_json
from mld_core.records.format.removals import REMOVED
from mld_core.service.client.api import Client
from mld_core.service.client.errors import DamagedFileError, ServiceError, ServiceUnreachableError
from mld_core.service.client.sealed import (
    LocalFile,
    SealedRank,
    is_noted,
    note_path,
    read_sealed,
    read_unsealed,
    sealed_folders,
    service_id,
)
from mld_core.service.client.transport import INTERACTIVE, OnBytes
from mld_core.service.protocol import (
    MANIFESTS_SINCE,
    MAX_BODY_BYTES,
    MAX_RANK_BYTES,
    MAX_RANK_HEAD,
    RANKS_SINCE,
)

_AT_ONCE = 4
_ROUNDS = 4
_MOST_FILES = MAX_RANK_HEAD // 100  # a digest and a number each
_MOST_NAMES = MAX_BODY_BYTES - (32 << 10)  # bytes of JSON; the rest of the body is small
_LOCAL_FACTS = frozenset({"format", "model_name", "version_name", "tags", "note", "evaluations"})
"""Not part of what a run is: its names, and what a person noted in the pages."""


@dataclass(frozen=True)
class Outcome:
    """What became of one sealed rank.

    Attributes:
        state: "uploaded" = sent now, "there" = the service had it, "gone" from the disk, "failed".
        files: files that were sent.
        bytes: bytes that were sent.
        message: why it failed.
    """

    state: Literal["uploaded", "there", "gone", "failed"]
    files: int = 0
    bytes: int = 0
    message: str = ""


class Uploader:
    """Uploads ranks of one store to one service. Safe to use from several threads.

    Args:
        store: where the ranks lie.
        client: the service.
        again: ask the service about every file of every rank, also of those noted as uploaded and of seals it
            has: it may have been restored from a backup that lacks them.
        on_bytes: told, from any thread, how many bytes are through.
        on_problem: told of what does not stop an upload, e.g. a note that can not be written.
    """

    def __init__(
        self,
        store: Store,
        client: Client,
        *,
        again: bool = False,
        on_bytes: OnBytes | None = None,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        self._store, self._client, self._again = store, client, again
        self._on_bytes = on_bytes
        self._on_problem = on_problem or (lambda _message: None)
        self._service = ""
        self._runs: dict[RunKey, tuple[str, dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._naming = threading.Lock()
        self.skipped = 0

    @property
    def service(self) -> str:
        """The short name of the key's organization at this service; asks the service once.

        Raises:
            ServiceUnreachableError, AuthenticationError: it can not be asked.
        """
        if not self._service:
            # Whether anybody is there is said within seconds; later words are waited for longer.
            organization = self._client.whoami(INTERACTIVE).get("organization_id", "")
            self._service = service_id(self._client.url, str(organization))
        return self._service

    def plan(self, runs: Iterable[RunKey]) -> list[SealedRank]:
        """What is to be sent, older passes first; `skipped` counts what is noted as uploaded.

        Raises:
            ServiceUnreachableError, AuthenticationError: the service can not be asked who we are.
        """
        service, found = self.service, []
        for run in runs:
            for folder in sealed_folders(self._store, run):
                if not self._again and is_noted(folder, service):
                    self.skipped += 1
                    continue
                rank = read_sealed(folder)
                if rank is not None:
                    found.append(rank)
        return found

    def send_all(self, ranks: Sequence[SealedRank]) -> Iterator[Outcome]:
        """Upload ranks, a few at once; what became of each, in their order. Raises as `send`.

        An error ends it when those under way are through.
        """
        stop = threading.Event()

        def one(rank: SealedRank) -> Outcome | None:
            return None if stop.is_set() else self.send(rank)

        with ThreadPoolExecutor(_AT_ONCE, "mld-rank") as pool:
            jobs = [pool.submit(one, rank) for rank in ranks]
            try:
                for job in jobs:
                    outcome = job.result()
                    assert outcome is not None
                    yield outcome
            finally:
                stop.set()

    def send(self, rank: SealedRank) -> Outcome:
        """Upload one rank; that it is refused or damaged is told, not raised, and stops no other.

        Raises:
            ServiceUnreachableError, AuthenticationError: the service does not answer any more, or refuses the
                key; what was sent until then counts.
        """
        folder = rank.folder
        try:
            outcome = self.upload(folder)
        except (ServiceUnreachableError, AuthenticationError):
            raise
        except (ServiceError, DamagedFileError) as error:
            return Outcome("failed", message=str(error))
        except OSError as error:
            return Outcome("failed", message=f"{folder}: {error.strerror or error}")
        if outcome.state == "gone":
            return Outcome("failed", message=f"{folder} was removed meanwhile")
        return outcome

    def upload(self, folder: Path) -> Outcome:
        """Upload one sealed rank and what it continues; a second time does nothing.

        Raises:
            ServiceUnreachableError, AuthenticationError, ServiceError: as `Client.send`; nothing of this rank
                was committed.
            DamagedFileError: a file is not what its manifest says.
            OSError: a file can not be read.
        """
        if self._known(folder):
            return Outcome("there")
        for _ in range(_ROUNDS):
            rank = read_sealed(folder)
            if rank is None:
                return Outcome("gone")
            try:
                for path in reversed(rank.earlier):
                    cut = None if self._known(path) else read_unsealed(path)
                    if cut is not None:
                        self._upload(cut)
                return self._upload(rank)
            except FileNotFoundError:
                # Its features were dropped while it was read: there is a new manifest now.
                again = read_sealed(folder)
                if again is not None and again.manifest == rank.manifest:
                    raise
        raise ServiceError(f"{folder} changes faster than it can be uploaded; try later", 0)

    def _known(self, folder: Path) -> bool:
        return not self._again and is_noted(folder, self.service)

    def _upload(self, rank: SealedRank) -> Outcome:
        run_id = self._run_id(rank.run)
        if self._is_small(rank):
            outcome = self._whole(rank, run_id)
            if outcome is not None:
                return outcome
        sent = self._send(list(rank.files), ask=True) if self._again else 0
        files, before = 0, set[str]()
        for number in range(_ROUNDS):
            if number != 1:  # at first, and again where the service did not keep what it took a moment ago
                body = self._seal_body(rank)
            made, missing = self._seal(run_id, rank, body)
            if not missing:
                self._note(rank, run_id)
                return Outcome("uploaded" if sent or made else "there", files, sent)
            wanted = {file.sha256: file for file in rank.files if file.sha256 in missing}
            if not wanted and body.get("manifest_sha256") not in missing:
                break
            for file in (one for sha256, one in wanted.items() if sha256 in before):
                self._client.look_at(file.path, file.sha256)  # it was sent: is it what its manifest says?
            before |= wanted.keys()
            sent += self._send(list(wanted.values()))
            files += len(wanted)
        raise ServiceUnreachableError(
            f"the service at {self._client.url} keeps missing files of {rank.label} that it took before"
        )

    def _is_small(self, rank: SealedRank) -> bool:
        """Whether a rank goes up in one request; `again` asks about each file instead."""
        whole = self._client.minor >= RANKS_SINCE and len(rank.files) < _MOST_FILES and not self._again
        return whole and rank.bytes + len(rank.text) <= MAX_RANK_BYTES

    def _whole(self, rank: SealedRank, run_id: str) -> Outcome | None:
        """Send a rank in one request; None where that is too much for something on the way."""
        try:
            files = [(one.path, one.sha256, one.bytes) for one in rank.files]
            made, sent = self._client.send_rank(run_id, files, rank.text, self._count)
        except ServiceError as error:
            if error.status == 413 and not error.problem:
                return None
            self._raise_but_conflict(rank, error)
            made, sent = False, 0
        self._note(rank, run_id)
        return Outcome("uploaded", len(rank.files), sent) if made else Outcome("there")

    def _seal_body(self, rank: SealedRank) -> dict[str, Any]:
        """What seals a rank; its manifest is uploaded for it."""
        if self._client.minor >= MANIFESTS_SINCE:
            return {"manifest_sha256": self._client.upload_text(rank.text)}
        names = ("dataset_type", "n_epoch", "pass_no", "attempt", "rank")
        place = {name: getattr(rank.opened, name) for name in names}
        return {**place, "manifest": rank.manifest, "opening": rank.opening}

    def _send(self, files: list[LocalFile], *, ask: bool = False) -> int:
        """Upload files, a few at once.

        Raises:
            The first error; the others are stopped when the file they are at is through.
        """
        failed = threading.Event()

        def one(file: LocalFile) -> int:
            if failed.is_set():
                return 0
            return self._client.upload(file.path, file.sha256, file.bytes, self._count, ask=ask)

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

    def _seal(self, run_id: str, rank: SealedRank, body: dict[str, Any]) -> tuple[bool, set[str]]:
        """Ask for the seal: whether it was made now, and which digests are missing."""
        try:
            status = self._client.seal(run_id, body)
        except ServiceError as error:
            missing = error.problem.get("missing")
            if error.name == "missing-blobs" and missing:
                return False, {str(digest) for digest in missing}
            self._raise_but_conflict(rank, error)
            return False, set()
        return status == 201, set()

    def _raise_but_conflict(self, rank: SealedRank, error: ServiceError) -> None:
        """Raise an error, but for that of a rank of which less is here: features or samples were dropped."""
        meta = rank.manifest.get("meta") or {}
        fewer = meta.get("features_dropped") or meta.get("cut") or meta.get(REMOVED)
        if error.name != "seal-conflict" or not fewer:
            raise error
        self._on_problem(f"{rank.label}: the service holds a fuller copy, which stays")

    def _note(self, rank: SealedRank, run_id: str) -> None:
        facts = {"endpoint": self._client.url, "run_id": run_id, "bytes": rank.bytes}
        note = {"format": FORMAT, "uploaded_at": utc_now(), **facts}
        try:
            # Not synced: a note that is lost costs a question.
            write_json(note_path(rank.folder, self.service), note, fsync=False)
        except OSError as error:  # a store that is read-only, or pruned meanwhile
            self._on_problem(
                f"{rank.label} is uploaded, but that could not be noted ({error.strerror or error}); the "
                "next `mld sync` asks the service again"
            )

    def _run_id(self, run: RunKey) -> str:
        """The service's id of a run, which is told what run.json says now."""
        with self._naming:
            return self._named(run)

    def _named(self, run: RunKey) -> str:
        info = {name: value for name, value in self._store.run_info(run).items() if name not in _LOCAL_FACTS}
        known = self._runs.get(run)
        if len(json.dumps(info.get("class_names"))) > _MOST_NAMES:
            if known is None:
                count = len(info["class_names"])
                self._on_problem(f"the names of {count} classes are too many for the service: they stay here")
            del info["class_names"]
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
