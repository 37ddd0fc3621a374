"""Uploading one file: asks how much is there, sends the rest in pieces, goes on where it was cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

from mld_core.service.client.api import (
    SLOW_READ_SECONDS,
    Client,
    FilePiece,
    OnBytes,
    Patience,
    Waiting,
    file_digest,
)
from mld_core.service.client.errors import DamagedFileError, ServiceError, ServiceUnreachableError
from mld_core.service.client.sealed import LocalFile
from mld_core.service.protocol import FALSE, HEADER_COMPLETE, HEADER_LENGTH, HEADER_OFFSET, TRUE

PIECE_BYTES = 64 << 20
_ASK_FIRST = 1 << 20
_SMALLEST_PIECE = 256 << 10
_MISMATCHES = 4


def upload_file(
    client: Client,
    file: LocalFile,
    on_bytes: OnBytes | None = None,
    patience: Patience | None = None,
    *,
    ask: bool = False,
) -> int:
    """Upload one file, unless the service holds it.

    Args:
        client: the service.
        file: what to send.
        on_bytes: told how many bytes are through (negative where some have to be sent again).
        patience: how long to try without a byte getting through; default: the client's.
        ask: ask what is there before anything is sent, also where the file is small.

    Returns:
        Bytes that were sent.

    Raises:
        DamagedFileError: the file is not what its manifest says.
        FileNotFoundError: it is gone (its features were dropped meanwhile).
        ServiceUnreachableError, ServiceError, AuthenticationError: as `Client.send`.
    """
    size = file.path.stat().st_size
    if size != file.bytes:
        raise _damaged(file, f"{size} bytes, its manifest says {file.bytes}")
    with file.path.open("rb") as opened:
        return _Upload(client, file, opened, on_bytes or _ignore, patience or client.patience).run(ask=ask)


class _Upload:
    """The state of one file on its way."""

    def __init__(
        self, client: Client, file: LocalFile, opened: IO[bytes], on_bytes: OnBytes, patience: Patience
    ) -> None:
        self._client, self._file, self._opened = client, file, opened
        self._patience = patience
        self._on_bytes = on_bytes
        self._path = f"/v1/blobs/{file.sha256}"
        self._piece = PIECE_BYTES
        self._told = 0  # bytes reported as through
        self._sent = 0
        self._mismatches = 0

    def run(self, *, ask: bool) -> int:
        """Send until it is complete."""
        size = self._file.bytes
        # A small file is sent at once: asking costs as much as sending.
        offset = self._steadily(self._ask) if ask or size > _ASK_FIRST else 0
        best, waiting = offset or 0, Waiting(self._patience)
        while offset is not None:
            self._report(offset)
            try:
                offset = self._put(offset)
            except ServiceUnreachableError as error:
                waiting.after(error)
                offset = self._steadily(self._ask)
            if offset is not None and offset > best:
                best = offset
                waiting.reset()
        self._report(size)
        return self._sent

    def _steadily(self, ask: Callable[[], int | None]) -> int | None:
        found: int | None = self._client.again(ask, self._patience)
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
                other = response.headers.get(HEADER_LENGTH, "") not in {"", str(self._file.bytes)}
        except ServiceError as error:
            if error.status == 404:
                return 0
            raise
        return 0 if other else self._within(int(offset) if offset.isdigit() else 0)

    def _within(self, offset: int) -> int:
        """An offset the service named; never beyond the file, whatever it says."""
        return offset if 0 <= offset < self._file.bytes else 0

    def _put(self, offset: int) -> int | None:
        """Send one piece; where to go on, None if the file is complete."""
        size = self._file.bytes
        length = min(self._piece, size - offset)
        headers = {
            HEADER_LENGTH: str(size),
            HEADER_COMPLETE: TRUE if offset + length == size else FALSE,
            "Content-Type": "application/octet-stream",
        }
        body = FilePiece(self._opened, offset, length, self._read)
        try:
            with self._client.send(
                "PUT",
                self._path,
                params={"offset": offset},
                data=body,
                headers=headers,
                read_seconds=SLOW_READ_SECONDS,
            ) as response:
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
            digest = file_digest(self._file.path)
            if digest != self._file.sha256:
                raise _damaged(self._file, f"SHA-256 {digest[:12]}…, its manifest says otherwise") from error
            return self._moved(0, error)
        if error.status == 413 and not error.problem and length > _SMALLEST_PIECE:
            self._piece = max(_SMALLEST_PIECE, length // 8)  # a proxy's limit, not the service's
            return self._steadily(self._ask) or 0
        raise error

    def _moved(self, offset: int, error: ServiceError) -> int:
        """Go on at an offset the service named, but not for ever."""
        self._mismatches += 1
        if self._mismatches > _MISMATCHES:
            raise ServiceUnreachableError(
                f"the service at {self._client.url} does not say the same twice about one file ({error.name})"
            )
        return offset


def _damaged(file: LocalFile, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"{file.path} is damaged ({why}) and is not uploaded; `mld doctor` lists what is damaged"
    )


def _ignore(_count: int) -> None:
    """Nobody wants to know."""
