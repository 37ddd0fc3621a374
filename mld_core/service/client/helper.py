"""The upload helper beside a training, seen from both ends.

It is a process of its own, so that no network ever holds a training thread, its interpreter lock or its exit.
Its first line on stdin are the settings (JSON, the key among them: it stands on no command line), each later
one a folder, a wish to look at the whole run, or the end; the end of stdin or of the parent is an end, too.
Lines are written without blocking: one that does not fit is made good by a look at the whole run. It answers
through files only: a note in each rank's folder that is uploaded, and its status. When it is gone it is
started again at the next pass; when the training is gone, by whatever way, it sees that, looks once more at
what this rank has to care for, sends it, and ends; it gives up when nothing got through for
`MLD_UPLOAD_LINGER` seconds (600). Nothing here is needed for correctness but the notes, which are written
after the service's word: it may be killed at any moment.

The training loads this module; what it takes to talk to a service is loaded in the process alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from mld_core.companion import Companion, refusal
from mld_core.evaluation.errors import AuthenticationError
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import SEAL_FILE, make_dirs, read_json, utc_now, write_json
from mld_core.service.client.errors import DamagedFileError, ServiceError, ServiceUnreachableError
from mld_core.service.client.sealed import is_noted, sealed_folders

LINGER_SECONDS = 600.0
STATUS_DIR = ".sync"
_LOOK_SECONDS = 0.05
_STARTS = 5
KEY_REFUSED, UNREACHABLE, BROKEN = "key", "unreachable", "broken"
_TRY_SECONDS = 5.0  # beyond that the process's own loop takes over, which listens to the training
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0
_PARENT_SECONDS = 2.0  # how often to see whether the parent lives
_NICE = 10


@dataclass(frozen=True)
class UploadSettings:
    """What a helper is told: the run and rank it cares for, and where to upload."""

    store: str
    model_name: str
    version_name: str
    attempt: str
    rank: int
    world_size: int
    endpoint: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def status_path(self) -> Path:
        """Where the helper keeps its status."""
        folder = Store(self.store).run_dir(RunKey(self.model_name, self.version_name))
        return folder / STATUS_DIR / f"{self.attempt}-rank-{self.rank}.json"


class UploadHelper:
    """The helper process of one rank. No method but `wait` takes longer than starting a process.

    Args:
        settings: what to upload and where.
    """

    def __init__(self, settings: UploadSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._process: Companion | None = None
        self._starts = 0
        self._off = ""
        self._dropped = False
        self._pid = os.getpid()

    def start(self) -> None:
        """Get ready: the helper looks whether the service is there and takes the key. Never blocks."""
        self._here()
        with self._lock:
            self._alive()

    def submit(self, folder: Path) -> None:
        """A rank's folder is sealed: upload it in the background. Never blocks, never raises OSError."""
        self._here()
        with self._lock:
            if self._alive():
                self._write({"scan": True} if self._dropped else {"folder": str(folder)})

    def finish(self) -> None:
        """No more will come: the helper sends what is left of this rank's run, and ends by itself."""
        self._here()
        with self._lock:
            if self._alive():
                self._write({"end": True})
            if self._process is not None:
                self._process.leave()
            self._process, self._starts = None, _STARTS

    def _here(self) -> None:
        """In a forked child: the process is the parent's, and a thread left behind may hold the lock."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
            if self._process is not None:
                self._process.forget()
            self._process, self._starts, self._dropped = None, 0, False

    def _alive(self) -> bool:
        """Whether there is a helper to talk to; starts one."""
        if self._process is not None and self._process.ended() is None:
            return True
        self._off = refusal()
        if self._starts >= _STARTS or self._off:
            return False
        self._starts += 1
        try:
            settings = asdict(self.settings)
            self._process = Companion(__name__, settings, self.settings.store, {})
        except OSError:
            return False
        self._dropped = self._starts > 1  # what the one before had not done yet is found by looking
        return True

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        self._dropped = not (self._process.tell(message) or self._process.tell({"scan": True}))

    # -- what it says ----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the helper last wrote about itself; empty before it did."""
        return read_json(self.settings.status_path) or {}

    def problem(self) -> str:
        """Why it does not get on, empty if it does."""
        return self._off or str((self.status().get("problem") or {}).get("message", ""))

    def wait(self, folders: Sequence[Path], timeout: float) -> None:
        """Wait until ranks are uploaded.

        Args:
            folders: of sealed ranks; they are submitted.
            timeout: seconds.

        Raises:
            TimeoutError: not in time; the upload goes on. AuthenticationError: the service refuses the key.
            RuntimeError: the service refuses the records, or no helper can be started here.
        """
        until = time.monotonic() + timeout
        left = list(folders)
        for folder in left:
            self.submit(folder)
        while left:
            status = self.status()
            service = str(status.get("service") or "")
            left = [folder for folder in left if not (service and is_noted(folder, service))]
            if left:
                self._look(status, left, late=time.monotonic() >= until, timeout=timeout)
                time.sleep(_LOOK_SECONDS)

    def _look(self, status: dict[str, Any], left: list[Path], *, late: bool, timeout: float) -> None:
        """Give up on what can not come any more, restart a helper that died."""
        problem = status.get("problem") or {}
        if problem.get("kind") == KEY_REFUSED:
            raise AuthenticationError(str(problem.get("message")))
        if self._off:
            raise RuntimeError(f"nothing is uploaded meanwhile: {self._off}; `mld sync` sends the records")
        refused = status.get("refused") or {}
        for folder in left:
            if str(folder) in refused:
                raise RuntimeError(f"{folder} is not uploaded: {refused[str(folder)]}")
        if late:
            why = problem.get("message") or "it is slow, or there is much to send"
            raise TimeoutError(
                f"{len(left)} sealed passes were not uploaded to {self.settings.endpoint} after {timeout:g} "
                f"s: {why}. They are safe in {self.settings.store}; the upload goes on in the background, "
                "and `mld sync` sends what is left"
            )
        with self._lock:
            died = self._process is None or self._process.ended() is not None
        if died:
            for folder in left:
                self.submit(folder)


# -- the other end: the process -----------------------------------------------------------------------------


class Inbox:
    """Lines from the training, read on a thread of their own."""

    def __init__(self, lines: IO[bytes]) -> None:
        self._lines = lines
        self._parent = os.getppid()
        self._changed = threading.Condition()
        self._folders: list[Path] = []
        self._scan = False
        self._ended = False
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._lines:
                message = json.loads(line)
                with self._changed:
                    if "folder" in message:
                        self._folders.append(Path(message["folder"]))
                    self._scan |= bool(message.get("scan"))
                    self._ended |= bool(message.get("end"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether no more will come: the training said so, or is gone."""
        # Forked workers of a killed training may hold its end of the pipe open: ask for the parent, too.
        return self._ended or os.getppid() != self._parent

    def take(self, timeout: float) -> tuple[list[Path], bool]:
        """What came since: folders, and whether to look at the whole run; waits up to `timeout` s."""
        until = time.monotonic() + timeout
        with self._changed:
            while not (self._folders or self._scan or self.ended):
                rest = until - time.monotonic()
                if rest <= 0:
                    break
                self._changed.wait(min(rest, _PARENT_SECONDS))
            found, scan = self._folders, self._scan
            self._folders, self._scan = [], False
        return found, scan


class Process:
    """The work of the process.

    Args:
        settings: what to upload, and where.
        inbox: what the training says.
        linger: seconds without a success after which it gives up, once the training is over.
    """

    def __init__(self, settings: UploadSettings, inbox: Inbox, linger: float) -> None:
        from mld_core.service.client import api, transport, uploader  # noqa: PLC0415 - not in the training

        self.settings, self._inbox, self._linger = settings, inbox, linger
        self._store = Store(settings.store)
        self._run = RunKey(settings.model_name, settings.version_name)
        client = api.Client(settings.endpoint, settings.api_key, transport.Patience(_TRY_SECONDS))
        self._uploader = uploader.Uploader(self._store, client, on_problem=self._notice)
        self._pending: dict[Path, None] = {}
        self._refused: dict[str, str] = {}
        self._notices: list[str] = []
        self._problem: dict[str, str] | None = None
        self._uploaded = 0
        self._service = ""
        self._pause = 0.0
        self._moved_at = time.monotonic()

    def run(self) -> int:
        """Work until the training is over and everything is sent or given up; 0 if all is sent."""
        self._greet()
        while not self._inbox.ended:
            folders, scan = self._inbox.take(self._pause if self._pending else 3600.0)
            if folders or scan:
                self._pause = 0.0  # something new is a reason to try at once
            self._add(folders, scan=scan)
            self._step(last=False)
        self._add(self._inbox.take(0)[0], scan=True)
        self._moved_at = time.monotonic()
        while self._pending and self._step(last=True):
            time.sleep(self._pause)
        self._say("stopped" if self._pending or self._refused else "done")
        return 1 if self._pending or self._refused else 0

    def _greet(self) -> None:
        """Find out early whether anybody is there and takes the key: the training tells it."""
        try:
            self._service = self._uploader.service
        except ServiceUnreachableError as error:
            self._failed(UNREACHABLE, error)
        except AuthenticationError as error:
            self._failed(KEY_REFUSED, error)
        else:
            self._say("ready")

    def _notice(self, message: str) -> None:
        self._notices = [*self._notices[-9:], message]

    def _add(self, folders: list[Path], *, scan: bool) -> None:
        self._pending.update(dict.fromkeys(folders))
        if scan:
            self._pending.update(dict.fromkeys(self._mine()))
        if folders or scan:
            self._say("uploading")

    def _mine(self) -> Iterator[Path]:
        """The sealed ranks of the run that this one of the `world_size` helpers cares for."""
        for folder in sealed_folders(self._store, self._run):
            number = int(folder.name.rpartition("-")[2])
            mine = number % self.settings.world_size == self.settings.rank
            if mine and not (self._service and is_noted(folder, self._service)):
                yield folder

    def _step(self, *, last: bool) -> bool:
        """Upload what is pending, in order, up to the first that does not get through.

        Returns:
            Whether it is worth going on.
        """
        while self._pending:
            folder = next(iter(self._pending))
            try:
                self._service = self._uploader.service
                self._uploader.upload(folder)
            except ServiceUnreachableError as error:
                self._failed(UNREACHABLE, error, error.retry_after)
                return not last or time.monotonic() - self._moved_at < self._linger
            except AuthenticationError as error:
                self._failed(KEY_REFUSED, error)
                self._pause = _LAST_PAUSE
                return not last
            except (ServiceError, DamagedFileError) as error:
                self._refused[str(folder)] = str(error)
            except OSError as error:  # the disk: later, perhaps
                if (folder / SEAL_FILE).exists():
                    self._failed(BROKEN, error)
                    return not last or time.monotonic() - self._moved_at < self._linger
            else:
                self._uploaded += 1
            del self._pending[folder]
            self._problem, self._pause, self._moved_at = None, 0.0, time.monotonic()
            self._say("uploading")
            if not last:
                more, scan = self._inbox.take(0)
                self._add(more, scan=scan)
        return False

    def _failed(self, kind: str, error: OSError, retry_after: float = 0.0) -> None:
        self._problem = {"kind": kind, "message": str(error)}
        self._pause = max(min(max(2 * self._pause, _FIRST_PAUSE), _LAST_PAUSE), retry_after)
        self._say("waiting")

    def _say(self, state: str) -> None:
        """Write the status; readers see it whole or as it was."""
        facts = {"service": self._service, "endpoint": self.settings.endpoint, "uploaded": self._uploaded}
        left = {"pending": len(self._pending), "refused": self._refused, "notices": self._notices}
        _write_status(self.settings, state, self._problem, **facts, **left)


def _write_status(settings: UploadSettings, state: str, problem: dict[str, str] | None, **facts: Any) -> None:
    path = settings.status_path
    status = {"state": state, "problem": problem, "pid": os.getpid(), "updated_at": utc_now(), **facts}
    with contextlib.suppress(OSError):
        if state == "done":
            path.unlink(missing_ok=True)
            return
        make_dirs(path.parent, fsync=False)
        write_json(path, status, fsync=False)


def main() -> int:
    """Entry point of the process; the exit status is 0 if everything was sent."""
    with contextlib.suppress(AttributeError, OSError):
        os.nice(_NICE)  # within its session alone: what waits for an upload would wait for a free processor
    settings = UploadSettings(**json.loads(sys.stdin.buffer.readline()))
    linger = float(os.environ.get("MLD_UPLOAD_LINGER") or LINGER_SECONDS)
    try:
        return Process(settings, Inbox(sys.stdin.buffer), linger).run()
    except Exception as error:  # nobody sees our stderr; the training reads the status
        problem = {"kind": BROKEN, "message": f"the upload helper stumbled: {error!r}"}
        _write_status(settings, "stopped", problem)
        raise
