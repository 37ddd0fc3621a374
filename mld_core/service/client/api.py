"""The protocol client: what the service is asked, and files that go on where they were cut, up and down."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from mld_core.service.client.errors import DamagedFileError, ServiceError, ServiceUnreachableError
from mld_core.service.client.transport import SLOW_READ_SECONDS, OnBytes, Patience, Transport, Waiting
from mld_core.service.protocol import FALSE, HEADER_COMPLETE, HEADER_LENGTH, HEADER_OFFSET, TRUE, Whoami

PIECE_BYTES = 64 << 20
_PIECE = 1 << 20
_ASK_FIRST = 1 << 20
_SMALLEST_PIECE = 256 << 10
_MISMATCHES = 4
_CHECK_SECONDS = 1800.0

NamedFile = tuple[Path, str, int]
"""A file, its digest and its bytes."""


class Client(Transport):
    """One service and one key; the arguments are those of `Transport`."""

    def whoami(self, patience: Patience | None = None) -> Whoami:
        """Whose key this is and what it may do."""
        return self.json("GET", "/v1/whoami", patience=patience)  # type: ignore[return-value]  # of a later minor: more members

    def seal(self, run_id: str, body: dict[str, Any]) -> int:
        """Ask for a rank's seal, again while its files are checked; 201 = sealed now, 200 = was before.

        Raises:
            As `send`; ServiceError with `missing` where files are not there.
        """
        until = time.monotonic() + _CHECK_SECONDS
        while True:
            try:
                return self.json_status("POST", f"/v1/runs/{run_id}/seals", body=body)[0]
            except ServiceUnreachableError as error:  # noqa: PERF203 - asking again is the protocol
                if error.name != "check-pending" or time.monotonic() > until:
                    raise
                time.sleep(max(error.retry_after, 0.5))

    def send_rank(
        self, run_id: str, files: Sequence[NamedFile], manifest: bytes, on_bytes: OnBytes | None = None
    ) -> tuple[bool, int]:
        """Send all files of a small rank in one request, which seals it.

        Args:
            run_id: the run's id at the service.
            files: path, digest and bytes of each, as the manifest says.
            manifest: its seal.json.
            on_bytes: told how many bytes are through.

        Returns:
            Whether it was sealed now (not before), and the bytes that were sent.

        Raises:
            DamagedFileError: a file is not what its manifest says.
            FileNotFoundError: one is gone (its features were dropped meanwhile).
            ServiceUnreachableError, ServiceError, AuthenticationError: as `send`.
        """
        named = [[sha256, size] for _, sha256, size in files]
        named.append([hashlib.sha256(manifest).hexdigest(), len(manifest)])
        pieces = [
            json.dumps({"files": named}).encode() + b"\n",
            *(_content(path, size) for path, _, size in files),
            manifest,
        ]
        body = b"".join(pieces)

        def once() -> int:
            where, headers = f"/v1/runs/{run_id}/ranks", {"Content-Type": "application/octet-stream"}
            how: dict[str, Any] = {"data": body, "headers": headers, "read_seconds": SLOW_READ_SECONDS}
            with self.send("POST", where, **how) as response:
                return response.status_code

        try:
            status: int = self.again(once)
        except ServiceError as error:
            if error.name == "digest-mismatch":
                for path, sha256, _ in files:
                    self.look_at(path, sha256)
            raise
        if on_bytes is not None:
            on_bytes(sum(size for _, _, size in files))
        return status == 201, len(body)

    def upload(
        self, path: Path, sha256: str, size: int, on_bytes: OnBytes | None = None, *, ask: bool = False
    ) -> int:
        """Upload one file, unless the service holds it.

        Args:
            path: what to send.
            sha256: its digest, as its manifest says.
            size: its bytes, as its manifest says.
            on_bytes: told how many bytes are through (negative where some have to be sent again).
            ask: ask what is there before anything is sent, also where the file is small.

        Returns:
            Bytes that were sent.

        Raises:
            DamagedFileError: the file is not what its manifest says.
            FileNotFoundError: it is gone (its features were dropped meanwhile).
            ServiceUnreachableError, ServiceError, AuthenticationError: as `send`.
        """
        there = path.stat().st_size
        if there != size:
            raise _damaged(path, f"{there} bytes, its manifest says {size}")
        with path.open("rb") as opened:
            return _Upload(self, path, sha256, size, opened, on_bytes or (lambda _count: None)).run(ask=ask)

    @staticmethod
    def look_at(path: Path, sha256: str) -> None:
        """Raise DamagedFileError where a file has another digest than its manifest says."""
        digest = file_digest(path)
        if digest != sha256:
            raise _other_digest(path, digest)

    def upload_text(self, text: bytes) -> str:
        """Upload a manifest, which is in memory, and return its digest; raises as `upload`."""
        sha256 = hashlib.sha256(text).hexdigest()
        name = Path(f"manifest {sha256[:12]}")
        _Upload(self, name, sha256, len(text), io.BytesIO(text), lambda _count: None).run(ask=False)
        return sha256

    def download(self, sha256: str, target: Path, size: int, on_bytes: OnBytes | None = None) -> None:
        """Fetch a blob into a file, continue where a connection broke, check size and digest.

        Raises:
            As `send`; ServiceError where the bytes are not those of the digest. `target` is then removed.
        """
        path = f"/v1/blobs/{sha256}"

        def rest() -> None:
            there = target.stat().st_size
            if there >= size:
                return
            headers = {"Range": f"bytes={there}-"} if there else {}
            with self.send("GET", path, headers=headers) as response, target.open("ab") as file:
                if there and response.status_code != 206:
                    file.truncate(0)
                for piece in response.iter_content(_PIECE):
                    file.write(piece)
                    if on_bytes is not None:
                        on_bytes(len(piece))
                    if file.tell() > size:
                        break
            if target.stat().st_size < size:
                raise ServiceUnreachableError(f"the service at {self.url} sent half a file")

        try:
            target.touch()
            self.again(rest)
            self._check(target, sha256, size)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _check(self, path: Path, sha256: str, size: int) -> None:
        if path.stat().st_size != size or file_digest(path) != sha256:
            raise ServiceError(
                f"what the service at {self.url} sent is not the file asked for ({sha256[:12]}…): its "
                "storage is damaged, or something on the way changes answers",
                200,
            )


class FilePiece:
    """Bytes of an open file as a request body of known length, read in large pieces.

    Args:
        file: open for reading, buffered or not.
        start: first byte.
        length: number of bytes.
        on_bytes: told how many bytes were read, each time.
    """

    def __init__(self, file: IO[bytes], start: int, length: int, on_bytes: OnBytes | None = None) -> None:
        file.seek(start)
        self._file, self._left, self._length = file, length, length
        self._on_bytes = on_bytes

    def __len__(self) -> int:
        return self._length

    def read(self, _size: int = -1) -> bytes:
        """The next piece; larger than asked for, since http.client asks for too little at a time."""
        piece = self._file.read(min(_PIECE, self._left))
        self._left -= len(piece)
        if piece and self._on_bytes is not None:
            self._on_bytes(len(piece))
        return piece


class _Upload:
    """The state of one file on its way."""

    def __init__(
        self, client: Client, path: Path, sha256: str, size: int, opened: IO[bytes], on_bytes: OnBytes
    ) -> None:
        self._client, self._opened, self._on_bytes = client, opened, on_bytes
        self._source, self._sha256, self._size = path, sha256, size
        self._path = f"/v1/blobs/{sha256}"
        self._piece = PIECE_BYTES
        self._told = 0  # bytes reported as through
        self._sent = 0
        self._mismatches = 0

    def run(self, *, ask: bool) -> int:
        """Send until it is complete."""
        # A small file is sent at once: asking costs as much as sending.
        offset = self._steadily_ask() if ask or self._size > _ASK_FIRST else 0
        best, waiting = offset or 0, Waiting(self._client.patience)
        while offset is not None:
            self._report(offset)
            try:
                offset = self._put(offset)
            except ServiceUnreachableError as error:
                waiting.after(error)
                offset = self._steadily_ask()
            if offset is not None and offset > best:
                best = offset
                waiting.reset()
        self._report(self._size)
        return self._sent

    def _steadily_ask(self) -> int | None:
        found: int | None = self._client.again(self._ask)
        return found

    def _report(self, offset: int) -> None:
        self._on_bytes(offset - self._told)
        self._told = offset

    def _read(self, count: int) -> None:
        self._told += count
        self._sent += count
        self._on_bytes(count)

    def _ask(self) -> int | None:
        """Bytes that are there; None if the file is complete."""
        try:
            with self._client.send("HEAD", self._path) as response:
                if response.headers.get(HEADER_COMPLETE) == TRUE:
                    return None
                offset = response.headers.get(HEADER_OFFSET, "0")
                other = response.headers.get(HEADER_LENGTH, "") not in {"", str(self._size)}
        except ServiceError as error:
            if error.status == 404:
                return 0
            raise
        return 0 if other else self._within(int(offset) if offset.isdigit() else 0)

    def _within(self, offset: int) -> int:
        """An offset the service named; never beyond the file, whatever it says."""
        return offset if 0 <= offset < self._size else 0

    def _put(self, offset: int) -> int | None:
        """Send one piece; where to go on, None if the file is complete."""
        size = self._size
        length = min(self._piece, size - offset)
        headers = {
            HEADER_LENGTH: str(size),
            HEADER_COMPLETE: TRUE if offset + length == size else FALSE,
            "Content-Type": "application/octet-stream",
        }
        body = FilePiece(self._opened, offset, length, self._read)
        more: dict[str, Any] = {
            "params": {"offset": offset},
            "headers": headers,
            "read_seconds": SLOW_READ_SECONDS,
        }
        try:
            with self._client.send("PUT", self._path, data=body, **more) as response:
                state = self._client.read_object(response)
        except ServiceError as error:
            return self._answered(error, length)
        if state.get("complete") is True:
            return None
        there = state.get("offset")
        if not isinstance(there, int) or not offset < there < size:
            # Neither an error nor progress that makes sense: patience decides.
            raise ServiceUnreachableError(
                f"the service at {self._client.url} says it holds {there} of {size} bytes, incomplete, after "
                f"{offset + length} were sent"
            )
        return there

    def _answered(self, error: ServiceError, length: int) -> int:
        """Where to go on after an answer that was no success.

        Raises:
            DamagedFileError, ServiceError: nowhere.
        """
        if error.name == "wrong-offset":
            there = error.problem.get("offset")
            return self._moved(self._within(there if isinstance(there, int) else 0), error)
        if error.name == "digest-mismatch":
            digest = _digest(self._opened)
            if digest != self._sha256:
                raise _other_digest(self._source, digest) from error
            return self._moved(0, error)
        if error.status == 413 and not error.problem and length > _SMALLEST_PIECE:
            self._piece = max(_SMALLEST_PIECE, length // 8)  # a proxy's limit, not the service's
            return self._steadily_ask() or 0
        raise error

    def _moved(self, offset: int, error: ServiceError) -> int:
        """Go on at an offset the service named, but not for ever."""
        self._mismatches += 1
        if self._mismatches > _MISMATCHES:
            raise ServiceUnreachableError(
                f"the service at {self._client.url} does not say the same twice about one file ({error.name})"
            )
        return offset


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path} is damaged ({why}) and is not uploaded; `mld doctor` lists what is damaged"
    )


def _other_digest(path: Path, digest: str) -> DamagedFileError:
    return _damaged(path, f"SHA-256 {digest[:12]}…, its manifest says otherwise")


def _content(path: Path, size: int) -> bytes:
    """The bytes of a file, as many as its manifest says."""
    content = path.read_bytes()
    if len(content) != size:
        raise _damaged(path, f"{len(content)} bytes, its manifest says {size}")
    return content


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces."""
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: IO[bytes]) -> str:
    state = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_PIECE):
        state.update(piece)
    return state.hexdigest()
