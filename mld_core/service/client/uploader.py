"""The upload helper: a process beside a training that sends sealed ranks to the service.

Its first line on stdin are the settings (JSON, the key among them: it stands on no command line), each later
one a folder, a wish to look at the whole run, or the end; the end of stdin or of the parent is an end, too.
Then it looks once more at what this rank has to care for, sends it, and ends; it gives up when nothing got
through for `MLD_UPLOAD_LINGER` seconds (600). Nothing here is needed for correctness but the notes, which are
written after the service's word: it may be killed at any moment and started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mld_core.evaluation.errors import AuthenticationError
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import SEAL_FILE, make_dirs, utc_now, write_json
from mld_core.service.client.api import Client, Patience
from mld_core.service.client.errors import DamagedFileError, ServiceError, ServiceUnreachableError
from mld_core.service.client.helper import BROKEN, KEY_REFUSED, UNREACHABLE, UploadSettings
from mld_core.service.client.ranks import RankUploader
from mld_core.service.client.sealed import is_noted, sealed_folders

LINGER_SECONDS = 600.0
_PATIENCE = Patience(5.0, first=0.25)  # beyond that the loop here takes over, which listens to the training
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0
_LOOK_SECONDS = 2.0  # how often to see whether the parent lives
_NICE = 10


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
                self._changed.wait(min(rest, _LOOK_SECONDS))
            found, scan = self._folders, self._scan
            self._folders, self._scan = [], False
        return found, scan


class Helper:
    """The work of the process.

    Args:
        settings: what to upload, and where.
        inbox: what the training says.
        linger: seconds without a success after which it gives up, once the training is over.
    """

    def __init__(self, settings: UploadSettings, inbox: Inbox, linger: float) -> None:
        self.settings, self._inbox, self._linger = settings, inbox, linger
        self._store = Store(settings.store)
        self._run = RunKey(settings.model_name, settings.version_name)
        self._uploader = RankUploader(
            self._store, Client(settings.endpoint, settings.api_key, _PATIENCE), on_problem=self._notice
        )
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
            folders, scan = self._inbox.take(self._idle())
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

    def _idle(self) -> float:
        """Seconds to wait for the training's next line."""
        return 3600.0 if not self._pending else self._pause

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
        path = self.settings.status_path
        status = {
            "state": state,
            "service": self._service,
            "endpoint": self.settings.endpoint,
            "pid": os.getpid(),
            "uploaded": self._uploaded,
            "pending": len(self._pending),
            "refused": self._refused,
            "notices": self._notices,
            "problem": self._problem,
            "updated_at": utc_now(),
        }
        with contextlib.suppress(OSError):
            if state == "done":
                path.unlink(missing_ok=True)
                return
            make_dirs(path.parent, fsync=False)
            write_json(path, status, fsync=False)


def _settings(line: bytes) -> UploadSettings:
    found: dict[str, Any] = json.loads(line)
    return UploadSettings(**found)


def main() -> int:
    """Entry point of the process; the exit status is 0 if everything was sent."""
    with contextlib.suppress(AttributeError, OSError):
        os.nice(_NICE)
    settings = _settings(sys.stdin.buffer.readline())
    linger = float(os.environ.get("MLD_UPLOAD_LINGER") or LINGER_SECONDS)
    try:
        return Helper(settings, Inbox(sys.stdin.buffer), linger).run()
    except Exception as error:  # nobody sees our stderr; the training reads the status
        problem = {"kind": BROKEN, "message": f"the upload helper stumbled: {error!r}"}
        status = {"state": "stopped", "problem": problem, "pid": os.getpid(), "updated_at": utc_now()}
        with contextlib.suppress(OSError):
            make_dirs(settings.status_path.parent, fsync=False)
            write_json(settings.status_path, status, fsync=False)
        raise


if __name__ == "__main__":
    sys.exit(main())
