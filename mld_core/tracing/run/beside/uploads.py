"""The seam to a team's service: what is sealed is handed to an uploader that was put here from outside.

This room never imports the service. `ml_debugger` provides the uploader (`provide`) when a tracer or wrapper
is imported; without one, and without an endpoint, nothing of this does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.tracing.guard import Guard
from mld_core.tracing.run.options import RecorderOptions

WAIT_SECONDS: Final = 60.0


class Uploader(Protocol):
    """Sends sealed ranks to a service, beside the training."""

    def start(self) -> None:
        """There will be something to upload. Must neither block nor raise."""
        ...

    def submit(self, folder: Path) -> None:
        """A rank's folder is sealed. Must neither block nor raise."""
        ...

    def wait(self, folders: Sequence[Path], timeout: float) -> None:
        """Submit, and wait until they are uploaded.

        Raises:
            TimeoutError: not in time. PermissionError: the key is refused. RuntimeError: the records are.
        """
        ...

    def problem(self) -> str:
        """Why it does not get on, empty if it does."""
        ...

    def finish(self) -> None:
        """No more will come: it sends what is left and ends by itself. Must not block."""
        ...


@dataclass(frozen=True)
class UploadTarget:
    """What an uploader is made for: one rank of one attempt at a run, and where to upload."""

    store: Path
    run: RunKey
    attempt: str
    rank: int
    world_size: int
    endpoint: str
    api_key: str | None = field(default=None, repr=False)


Factory = Callable[[UploadTarget], Uploader]

_provided: list[Factory] = []


def provide(factory: Factory) -> None:
    """Use this factory for every run that is started from now on."""
    _provided[:] = [factory]


def sealed_folder(store: Store, run: RunKey, ticket: Future[Any]) -> Path | None:
    """The folder of a sealed pass; None where there is none (it failed, or there was nothing)."""
    if not ticket.done() or ticket.cancelled() or ticket.exception() is not None:
        return None
    manifest = ticket.result()
    if manifest is None:
        return None
    opened = manifest.attempt
    key = PassKey(opened.dataset_type, opened.n_epoch, opened.pass_no)
    return store.rank_dir(run, key, opened.attempt, opened.rank)


class RunUploads:
    """The uploads of one started run on this rank.

    Args:
        store: where the records are.
        target: what is uploaded, and where.
        auto_sync: upload each pass when it is sealed; else at the end, or when somebody waits for it.
        guard: tells problems.
    """

    def __init__(self, store: Store, target: UploadTarget, guard: Guard, *, auto_sync: bool) -> None:
        self.target = target
        self.auto_sync = auto_sync
        self.sealed_passes = 0
        self._store, self._guard = store, guard
        self._uploader = _provided[0](target)
        self._behind: list[Path] = []

    def sealed(self, ticket: Future[Any]) -> None:
        """A pass is sealed, or will not be; called on the writer's thread."""
        folder = self._folder(ticket)
        if folder is None:
            return
        self.sealed_passes += 1
        if self.auto_sync:
            self._uploader.submit(folder)
        else:
            self._uploader.start()  # so that a wrong key is known before the run is over
        problem = self._uploader.problem()
        if problem:
            self._guard.tell_once(
                "upload problem",
                f"Nothing is uploaded yet: {problem}. Records stay on disk, training goes on.",
            )

    def _folder(self, ticket: Future[Any]) -> Path | None:
        return sealed_folder(self._store, self.target.run, ticket)

    def wait(self, tickets: Iterable[Future[Any]], timeout: float | None) -> None:
        """Wait until sealed passes are uploaded.

        Args:
            tickets: of seals that are done.
            timeout: seconds, after which it is an error. None: up to a minute, after which it is told once
                and the training goes on; nothing is waited for again until that is uploaded.

        Raises:
            TimeoutError, PermissionError, RuntimeError: see `Uploader.wait`; only with a timeout.
        """
        folders = [folder for ticket in tickets if (folder := self._folder(ticket)) is not None]
        if timeout is not None:
            self._uploader.wait(folders, timeout)
            return
        try:
            if self._behind:  # what was waited for in vain must be through before anything is waited for
                self._uploader.wait(self._behind, 0.0)
            self._uploader.wait(folders, WAIT_SECONDS)
        except (TimeoutError, PermissionError, RuntimeError) as error:
            for folder in folders:
                self._uploader.submit(folder)
            self._behind += folders
            self._guard.tell_once("upload", f"{error}. The training goes on.")
        else:
            self._behind = []

    def finish(self) -> None:
        """The run is over on this rank: what is not uploaded yet goes in the background."""
        if self.sealed_passes:
            self._uploader.finish()

    def summary(self) -> str:
        """One line for the account."""
        problem = self._uploader.problem()
        told = f" So far: {problem}." if problem else ""
        return (
            f"{self.sealed_passes} sealed passes of this rank go to {self.target.endpoint} meanwhile; "
            f"`mld sync` sends what is left.{told}"
        )


def uploads_for(
    options: RecorderOptions,
    guard: Guard,
    store: Store,
    run: RunKey,
    *,
    attempt: str,
    rank: int,
    world_size: int,
) -> RunUploads | None:
    """The uploads of a run, None where no endpoint is set or nothing can upload."""
    endpoint, key = options.credentials()
    if endpoint is None or not _provided:
        return None
    target = UploadTarget(store.root, run, attempt, rank, world_size, endpoint, key)
    return RunUploads(store, target, guard, auto_sync=options.auto_sync)


def where_to(options: RecorderOptions) -> str:
    """What the user is told at the start about uploads, empty without an endpoint."""
    endpoint, _ = options.credentials()
    if endpoint is None:
        nowhere = "auto_sync=True does nothing without a service: set MLD_API_ENDPOINT and MLD_API_KEY."
        return nowhere if options.auto_sync else ""
    if not _provided:
        return (
            f"Nothing is uploaded to {endpoint} by mld_core alone: import the tracer or wrapper from "
            "ml_debugger, or send the records with `mld sync`."
        )
    when = "as soon as they are sealed" if options.auto_sync else "at the end of the run"
    return f"Sealed passes are uploaded to {endpoint} {when}, beside the training."
