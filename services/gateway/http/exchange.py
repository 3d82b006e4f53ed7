"""One HTTP exchange at the ASGI level: body in with a limit, answer out, and an eye on the connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from services.common.errors import BatonError, ErrorReason
from services.common.ids import new_id
from services.gateway.access import ANYBODY, Caller
from services.gateway.http.errors import error_body, error_headers
from services.gateway.http.protocol import chunks_of
from services.gateway.request import MAX_ID_CHARS
from services.gateway.sampling import bad_field

JSON = (b"content-type", b"application/json")
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_LINGER_S = 5.0
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")

_logger = logging.getLogger(__name__)

Header = tuple[bytes, bytes]
Handler = Callable[["Exchange"], Awaitable[None]]
ErrorListener = Callable[[BatonError], None]
Access = Callable[[str], Caller]


class Exchange:
    """A request, and the answer to it.

    Attributes:
        caller: whose request it is.
        chunks: takes events at once, in place of `send_events`; None: the server has no such thing.
        has_started: the answer's status is out.
        path_params: the parts of the path that its route names.
        request_id: the client's X-Request-Id, or minted; every answer carries it.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self.caller = ANYBODY
        self.chunks = chunks_of(scope)
        self.path_params: dict[str, str] = scope.get("path_params", {})
        self.has_started = False
        self.request_id = self.header("x-request-id")[:MAX_ID_CHARS] or new_id()

    def header(self, name: str) -> str:
        """Return a header, or an empty string."""
        return self._headers.get(name.encode(), b"").decode("latin-1")

    def timeout_s(self, default_s: float) -> float:
        """Return the time that the client gives the request: X-Request-Timeout, seconds.

        Raises:
            BatonError: INVALID_ARGUMENT.
        """
        text = self.header("x-request-timeout")
        if not text:
            return default_s
        if _SECONDS.fullmatch(text) is None or float(text) <= 0:
            raise bad_field("x-request-timeout", f"must be seconds above 0, such as 30 or 2.5, got {text!r}")
        return float(text)

    async def read_body(self, max_bytes: int) -> bytes:
        """Read the body, but not beyond the limit.

        Raises:
            BatonError: TOO_LARGE: at once if Content-Length says so; CANCELLED: the client left.
        """
        length = self.header("content-length")
        if length.isdigit() and int(length) > max_bytes:
            raise _too_large(max_bytes)
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise BatonError(ErrorReason.CANCELLED, "the client closed the connection")
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def until_disconnect(self, work: Awaitable[None]) -> None:
        """Do `work`; if the client leaves first, cancel it. Call after the body has been read."""
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            watch.cancel()
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, BatonError):
                await task

    async def answer(self, body: bytes, *headers: Header, status: int = 200) -> None:
        """Send a whole answer."""
        await self._start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: BatonError) -> None:
        """Send an error, as a status if the answer has not begun, else as the stream's last event."""
        if self.has_started:
            await self._send({"type": "http.response.body", "body": b"data: " + error_body(error) + b"\n\n"})
            return
        if error.reason is ErrorReason.TOO_LARGE:
            await self._refuse_body(error)
        else:
            await self.answer(error_body(error), *error_headers(error), status=error.http_code)

    async def start_events(self) -> None:
        """Begin a stream of server-sent events."""
        await self._start(200, _EVENTS)

    async def send_events(self, events: bytes, *, more: bool = True) -> None:
        """Send some, each already in its `data: ...` form."""
        await self._send({"type": "http.response.body", "body": events, "more_body": more})

    async def _refuse_body(self, error: BatonError) -> None:
        """Answer, then drop what still comes for a while: closing at once would reset the connection,
        and a client in the middle of sending would never see the answer."""
        body = error_body(error)
        length = (b"content-length", str(len(body)).encode())
        await self._start(error.http_code, [*error_headers(error), length, (b"connection", b"close")])
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (await self._receive()).get("more_body", False):
                    pass
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.has_started = True
        headers = [*headers, (b"x-request-id", self.request_id.encode("latin-1"))]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


class Endpoint:
    """An ASGI app of one handler: its BatonErrors become answers in OpenAI's shape.

    A class, because Starlette takes a function for a request handler.

    Args:
        access: gives the caller of an Authorization header, or raises BatonError.
    """

    def __init__(self, handler: Handler, on_error: ErrorListener, access: Access) -> None:
        self._handler = handler
        self._on_error = on_error
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        exchange = Exchange(scope, receive, send)
        try:
            exchange.caller = self._access(exchange.header("authorization"))
            await self._handler(exchange)
        except BatonError as error:
            await self._fail(exchange, error)
        except Exception:
            _logger.exception("handler failed: %s", scope["path"])
            message = "internal error; the gateway's log has the details"
            await self._fail(exchange, BatonError(ErrorReason.INTERNAL, message))

    async def _fail(self, exchange: Exchange, error: BatonError) -> None:
        self._on_error(error)
        with contextlib.suppress(OSError):
            await exchange.fail(error)


def _too_large(max_bytes: int) -> BatonError:
    return BatonError(ErrorReason.TOO_LARGE, f"body: at most {max_bytes} bytes are taken")
