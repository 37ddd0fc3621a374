"""What the training process knows of its upload helper: start it, hand it folders, look at its notes.

The helper is a process of its own (`mld_core.service.client.uploader`), so that no network ever holds a
training thread, its interpreter lock or its exit. Lines go to its stdin without blocking: a line that does
not fit is made good by a look at the whole run. It answers through files only: a note in each rank's folder
that is uploaded, and its status. When it is gone it is started again at the next pass; when the training is
gone, by whatever way, it sees that, sends what is sealed, and ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mld_core.evaluation.errors import AuthenticationError
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import read_json
from mld_core.service.client.sealed import is_noted

STATUS_DIR = ".sync"
_LOOK_SECONDS = 0.05
_STARTS = 5
_LONGEST_LINE = 4000  # below PIPE_BUF: a line is written whole or not at all
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mld_core.service.client.uploader import main; sys.exit(main())"
)
KEY_REFUSED, UNREACHABLE, BROKEN = "key", "unreachable", "broken"


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
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
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
            process = self._process
            if self._alive():
                self._write({"end": True})
                process = self._process
            if process is not None and process.stdin is not None:
                process.stdin.close()
            self._process, self._starts = None, _STARTS
            if process is not None:
                _left.append(process)

    def _here(self) -> None:
        """In a forked child: the process is the parent's, and a thread left behind may hold the lock."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
            if self._process is not None:
                _left.append(self._process)
            self._process, self._starts, self._dropped = None, 0, False

    def _alive(self) -> bool:
        """Whether there is a helper to talk to; starts one."""
        if self._process is not None and self._process.poll() is None:
            return True
        if self._starts >= _STARTS or not sys.executable:
            return False
        self._starts += 1
        try:
            self._process = self._start()
        except OSError:
            return False
        self._dropped = self._starts > 1  # what the one before had not done yet is found by looking
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        # The training's own search path, whatever made it: the helper must find this very package.
        path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - "" is the current folder
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-c", _BOOT, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=self.settings.store,
            start_new_session=True,  # a Ctrl-C ends the training, not the upload of what it recorded
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(self.settings)).encode() + b"\n")
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        line = json.dumps(message).encode() + b"\n"
        if len(line) > _LONGEST_LINE:
            line = b'{"scan": true}\n'
        try:
            self._dropped = self._process.stdin.write(line) is None
        except OSError:  # it died a moment ago
            self._dropped = True

    # -- what it says ----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the helper last wrote about itself; empty before it did."""
        return read_json(self.settings.status_path) or {}

    def problem(self) -> str:
        """Why it does not get on, empty if it does."""
        return str((self.status().get("problem") or {}).get("message", ""))

    def wait(self, folders: Sequence[Path], timeout: float) -> None:
        """Wait until ranks are uploaded.

        Args:
            folders: of sealed ranks; they are submitted.
            timeout: seconds.

        Raises:
            TimeoutError: not in time; the upload goes on. AuthenticationError: the service refuses the key.
            RuntimeError: the service refuses the records.
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
            died = self._process is None or self._process.poll() is not None
        if died:
            for folder in left:
                self.submit(folder)


_left: list[subprocess.Popen[bytes]] = []
"""Helpers that end by themselves; kept, or their objects would warn that they still run."""
