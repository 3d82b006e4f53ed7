"""Uvicorn inside the gateway's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from services.common.logs import log
from services.common.tls import Certificate
from services.gateway.http.protocol import BoundedProtocol

_STOP_S = 2
_RENEW_S = 5.0
_BACKLOG = 2048

_logger = logging.getLogger(__name__)


class HttpServer:
    """Bound on construction, serving after `start`.

    Args:
        certificate: TLS; None: none.
        shares_port: other processes listen on the same port.
    Attributes:
        address: "host:port" as others reach it.
    Raises:
        OSError: the port cannot be bound; names it.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        advertise_host: str = "",
        certificate: Certificate | None = None,
        shares_port: bool = False,
    ) -> None:
        self._socket = _bind(host, port, shares_port)
        self.address = f"{advertise_host or host}:{self._socket.getsockname()[1]}"
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            http=BoundedProtocol,
            ws="none",
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_STOP_S,
            server_header=False,
            ssl_certfile=certificate.cert if certificate else None,
            ssl_keyfile=certificate.key if certificate else None,
        )
        self._server = _Server(config)
        self._config = config
        self._certificate = certificate
        self._task: asyncio.Task[None] | None = None
        self._renewals: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, and return once connections are taken."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                await self._task
            await asyncio.sleep(0.005)
        if self._certificate is not None:
            self._renewals = asyncio.create_task(self._follow(self._certificate))

    async def stop(self) -> None:
        """Stop listening, give running requests 2 s, then close their connections."""
        if self._renewals is not None:
            self._renewals.cancel()
            await asyncio.wait([self._renewals])
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()

    async def _follow(self, certificate: Certificate) -> None:
        """Show a renewed certificate from the next handshake on."""
        context = self._config.ssl
        assert context is not None
        seen = certificate.stamps()
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                stamps = certificate.stamps()
                if stamps != seen:
                    certificate.ssl_context()  # half-written files are not taken
                    context.load_cert_chain(certificate.cert, certificate.key)
                    seen = stamps
            except (OSError, ssl.SSLError) as error:
                log(_logger, logging.WARNING, "certificate not renewed", error=str(error))


class _Server(uvicorn.Server):
    """Leaves signals to the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(host: str, port: int, shares_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Unless told the protocol, asyncio leaves Nagle on, and answers wait 40 ms; uvloop does not ask.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shares_port:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    bound.setblocking(False)
    return bound
