"""Uvicorn's HTTP/1.1, with limits on a request's head: how large, and how long it may take to come."""

from __future__ import annotations

import asyncio

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
HEAD_TIMEOUT_S = 15.0

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


_EXTENSION = "baton.chunks"


class Chunks:
    """The body of an answer without a length: sends what uvicorn would, but without a coroutine.

    Attributes:
        is_free: the connection is open, and its reader keeps up.
    """

    __slots__ = ("_transport", "is_free")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.is_free = True

    def write(self, body: bytes) -> None:
        """Send a chunk, which is not empty; only between the answer's first and its last part."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))


def chunks_of(scope: Scope) -> Chunks | None:
    """Return a request's way out, or None: the server under it is another one."""
    found: dict[str, Chunks] = scope.get("extensions", {}).get(_EXTENSION, {})
    return found.get("chunks")


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._chunks = Chunks(self.transport)
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._chunks.is_free = False
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a connection whose head grows too large is closed."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_timer is None:
                self._time_head()
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Begin to take a body, of any size: the handler has its limit."""
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()
        self.scope["extensions"] = {_EXTENSION: {"chunks": self._chunks}}

    def on_message_complete(self) -> None:
        """Begin to wait for the next request's head."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def pause_writing(self) -> None:
        """Wait for a slow reader."""
        self._chunks.is_free = False
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._chunks.is_free = True
        super().resume_writing()

    def _time_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
