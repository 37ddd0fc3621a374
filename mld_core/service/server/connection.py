"""The HTTP connection: uvicorn's, with limits on the time and size of everything but a body.

uvicorn waits for ever for a head that is sent a byte at a time (slow loris), and for the rest of a body that
nobody reads any more; and it keeps any number of header bytes, those after a chunked body too.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Subclass it to set the limits.

    Attributes:
        head_timeout: seconds in which a head must be there.
        rest_timeout: seconds in which the rest of a body must be there that was answered before its end.
    """

    head_timeout = 10.0
    rest_timeout = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._unseen = 0  # bytes since the parser last came to the end of a head or to a piece of a body
        self._in_head = True
        self._too_large = False

    def connection_made(self, transport: Any) -> None:
        """A client connected; the clock of its first head runs."""
        super().connection_made(transport)
        self._watch(self.head_timeout, _TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self, seconds: float, answer: bytes) -> None:
        self._unwatch()
        self._timer = self.loop.call_later(seconds, self._give_up, answer)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, answer: bytes) -> None:
        self._unwatch()
        if not self.transport.is_closing():
            if answer:
                self.transport.write(answer)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._in_head and self._timer is None:
            self._watch(self.head_timeout, _TOO_SLOW)
        self._unseen += len(data)
        super().data_received(data)
        if self._unseen > MAX_HEAD_BYTES:
            self._give_up(_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        """The parser stopped, by itself or because a callback below refused."""
        if self._too_large:
            self._give_up(_TOO_LARGE)
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._header_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        if b"#" in url:  # no target holds one (RFC 9112, 3.2); to cut it off would answer something else
            raise ValueError("a fragment in the request's target")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or one after a chunked body."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEAD_BYTES:
            self._too_large = True
            raise ValueError("too many header bytes")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        self._unseen = 0
        self._unwatch()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._unseen = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there; what comes next is another head."""
        self._in_head = True
        self._unseen = 0
        self._unwatch()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is sent, perhaps before the whole request came."""
        super().on_response_complete()
        if not self._in_head:
            self._watch(self.rest_timeout, b"")


def limited_protocol(head_timeout: float, rest_timeout: float) -> type[LimitedProtocol]:
    """The protocol class with these limits."""
    limits = {"head_timeout": head_timeout, "rest_timeout": rest_timeout}
    return type("Connection", (LimitedProtocol,), limits)
