"""The HTTP connection: uvicorn's, with limits on the time and size of everything but a body, and on how many.

uvicorn waits for ever for a head that is sent a byte at a time (slow loris), for the rest of a body that
nobody reads any more, and for a client that does not read its answer; it keeps any number of header bytes,
those after a chunked body too; and it answers 503 to all where there are too many connections, whoever opened
them.

The body of an upload is read past the parser, into blocks: uvicorn copies each piece of it three times, in
pieces so small that waking up for each costs more than writing them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mld_core.service.server.proxies import FORWARDED, Proxies
from mld_core.service.server.settings import Settings

MAX_HEAD_BYTES = 64 << 10
_READ_AHEAD = 512 << 10
_BLOCK = 1 << 20
_HELD_SECONDS = 0.05

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
)
_STRANGERS_KEEP_ALIVE = 2
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connections:
    """All connections of a server: who came with a right key, and who is a stranger.

    A quarter of the places is for those who are known. Where strangers take more than the rest, or one
    address more than a quarter, the stranger that waits for longest without asking anything goes, not the
    newcomer.

    Args:
        most: connections at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._share = max(1, most // 4)
        self._known: dict[LimitedProtocol, str] = {}
        self._strangers: dict[LimitedProtocol, str] = {}  # in the order in which they came
        self._of: dict[str, int] = {}

    def arrived(self, one: LimitedProtocol, address: str) -> bool:
        """Note a new connection, a stranger's; whether there is a place for it."""
        self._strangers[one] = address
        self._of[address] = self._of.get(address, 0) + 1
        if self._of[address] > self._share:
            return self._drop(other for other, whose in self._strangers.items() if whose == address)
        if len(self._strangers) > self._most - self._share:
            return self._drop(self._strangers)
        if len(self._strangers) + len(self._known) > self._most:
            return self._drop([*self._strangers, *self._known])
        return True

    def _drop(self, oldest_first: Iterable[LimitedProtocol]) -> bool:
        """Make room: the first that asks nothing goes. False if that is the newcomer, or all are busy."""
        newest = next(reversed(self._strangers))
        for one in oldest_first:
            if one is not newest and one.waits:
                one.close()
                self.gone(one)
                return True
        return False

    def knows(self, one: LimitedProtocol) -> None:
        """A right key came on a connection."""
        if one in self._strangers:
            self._known[one] = self._strangers[one]
            self._forget(one)

    def moved(self, one: LimitedProtocol, address: str) -> bool:
        """A stranger's connection is another address's now; whether there is a place for it."""
        if one not in self._strangers or self._strangers[one] == address:
            return True
        self._forget(one)
        return self.arrived(one, address)

    def gone(self, one: LimitedProtocol) -> None:
        """A connection is over."""
        self._known.pop(one, None)
        if one in self._strangers:
            self._forget(one)

    def _forget(self, one: LimitedProtocol) -> None:
        address = self._strangers.pop(one)
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]


class Body(asyncio.BufferedProtocol):
    """What a connection listens to while the rest of a large body comes.

    A block is handed over when it is full; of a slow body, what is there after a moment.

    Args:
        connection: takes the blocks, and the connection back after the last.
        left: bytes of the body that are still to come; not one more is read.
    """

    def __init__(self, connection: LimitedProtocol, left: int) -> None:
        self._connection, self._left = connection, left
        self._block, self._filled = bytearray(min(_BLOCK, left)), 0
        self._timer: asyncio.TimerHandle | None = None

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the name is asyncio's
        """Where the next bytes go."""
        return memoryview(self._block)[self._filled : self._filled + self._left]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self._filled += nbytes
        self._left -= nbytes
        if self._filled == len(self._block) or not self._left:
            self._hand_over()
        elif self._timer is None:
            self._timer = self._connection.loop.call_later(_HELD_SECONDS, self._hand_over)
        if not self._left:
            self._connection.body_ended()

    def _hand_over(self) -> None:
        self._no_timer()
        with memoryview(self._block) as block:
            self._connection.on_body(bytes(block[: self._filled]))
        self._filled = 0

    def _no_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, and what was not handed over with it: the client goes on before that."""
        self._no_timer()
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """See `LimitedProtocol`."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """See `LimitedProtocol`."""
        self._connection.resume_writing()


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Subclass it to set the limits.

    Attributes:
        head_timeout: seconds in which a head must be there.
        rest_timeout: seconds in which the rest of a body must be there that was answered before its end.
        min_bytes_per_second: a client that reads its answer slower than this, over `rest_timeout`, is left.
        all: the connections of the server.
    """

    head_timeout = 10.0
    rest_timeout = 30.0
    min_bytes_per_second = 1024
    all = Connections(1000)
    proxies = Proxies()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._unseen = 0  # bytes since the parser last came to the end of a head or to a piece of a body
        self._in_head = True
        self._refusal = b""  # the answer to a head that is not taken
        self._left = 0  # bytes of an upload's body that the parser has not seen
        self._known = self._proxied = False
        self._reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client connected; the clock of its first head runs."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        self._proxied = self.proxies.trusts(address)
        # A proxy's connections are not one stranger's: each counts for whom its request comes from.
        if self.all.arrived(self, f"{address} {id(self)}" if self._proxied else address):
            self._watch(self.head_timeout, _TOO_SLOW)
        else:
            self._give_up(_TOO_MANY)

    @property
    def waits(self) -> bool:
        """Whether it asks nothing now: no request has come, or the last is answered."""
        return self.cycle is None or self.cycle.response_complete

    def close(self) -> None:
        """End it without a word."""
        self._give_up(b"")

    def known(self) -> None:
        """A right key came with a request."""
        if not self._known:
            self._known = True
            self.all.knows(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._unwatch()
        self.all.gone(self)
        if self._reader is not None:
            self._reader.cancel()
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

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _watch_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._reader = self.loop.call_later(self.rest_timeout, self._look_at_reader, unread)

    def _look_at_reader(self, unread: int) -> None:
        read = unread - self.transport.get_write_buffer_size()
        if read < min(unread, self.rest_timeout * self.min_bytes_per_second):
            self.transport.abort()
        else:
            self._watch_reader()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._in_head and self._timer is None:
            self._watch(self.head_timeout, _TOO_SLOW)
        self._unseen += len(data)
        super().data_received(data)
        if self._unseen > MAX_HEAD_BYTES:
            self._give_up(_TOO_LARGE)
        elif self._left > _READ_AHEAD and not self.transport.is_closing():
            self._listen(Body(self, self._left))

    def _listen(self, who: asyncio.BaseProtocol) -> None:
        self.transport.pause_reading()  # the way of reading is chosen where it begins
        self.transport.set_protocol(who)
        if not self.flow.read_paused:
            self.transport.resume_reading()

    def body_ended(self) -> None:
        """The last byte of a body is there that the parser has not seen: a new one takes the next request."""
        self._left = 0
        self.parser = httptools.HttpRequestParser(self)
        self._listen(self)
        self.on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """The parser stopped, by itself or because a callback below refused."""
        if self._refusal:
            self._give_up(self._refusal)
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
            self._refusal = _TOO_LARGE
            raise ValueError("too many header bytes")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        self._unseen = 0
        self._unwatch()
        self.scope["mld.connection"] = self  # type: ignore[typeddict-unknown-key]
        if self._proxied and not self._known and not self.all.moved(self, self._asker()):
            self._refusal = _TOO_MANY
            raise ValueError("too many connections from one address")
        super().on_headers_complete()
        if self.parser.get_method() == b"PUT" and not (self.pipeline or self.expect_100_continue):
            self._left = self._length()

    def _length(self) -> int:
        """Bytes of the body, 0 where the head does not say."""
        told = dict(self.headers)
        plain = b"transfer-encoding" not in told and b"upgrade" not in told
        return int(told.get(b"content-length", 0)) if plain else 0

    def _asker(self) -> str:
        """Whom the request came from, as the proxy says."""
        told = [value.decode("latin-1") for name, value in self.headers if name.lower() == FORWARDED.encode()]
        assert self.client is not None
        return self.proxies.client(self.client[0], ",".join(told))

    def on_body(self, body: bytes) -> None:
        """A piece of a body; more of it is read ahead than uvicorn does, which copies each piece twice."""
        self._unseen = 0
        self._left -= min(len(body), self._left)
        if self.cycle.response_complete or self.parser.should_upgrade():
            super().on_body(body)
            return
        before: bytes | bytearray = self.cycle.body
        # Taken as it is, where the piece before it was taken in time.
        self.cycle.body = bytearray(before) + body if before else body  # type: ignore[assignment]
        if len(self.cycle.body) > _READ_AHEAD:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The request is there; what comes next is another head."""
        self._in_head = True
        self._unseen = 0
        self._unwatch()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is sent, perhaps before the whole request came."""
        kept = self.timeout_keep_alive
        if not self._known:
            self.timeout_keep_alive = _STRANGERS_KEEP_ALIVE
        super().on_response_complete()
        self.timeout_keep_alive = kept
        if not self._in_head:
            self._watch(self.rest_timeout, b"")


def limited_protocol(settings: Settings) -> type[LimitedProtocol]:
    """The protocol class with these limits."""
    limits = {
        "head_timeout": settings.head_timeout,
        "rest_timeout": settings.idle_timeout,
        "min_bytes_per_second": settings.min_bytes_per_second,
        "all": Connections(settings.connections),
        "proxies": Proxies(settings.trusted_proxies),
    }
    return type("Connection", (LimitedProtocol,), limits)
