"""Prometheus metrics of one process, and its health, on an HTTP port of their own."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterable
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from services.common.tls import Certificate

_TIMEOUT_S = 10


class MetricsServer:
    """Serves GET /metrics from a registry that belongs to this service alone, and GET /health.

    Modifies: opens a port and starts a daemon thread; `close` undoes both.

    Args:
        certificate: TLS; nobody is asked for a certificate, since nothing here is secret. None: no TLS.
        is_serving: what /health says: 200, or 503.

    Attributes:
        port: where it listens.
    Raises:
        OSError: the port cannot be bound; names it.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        certificate: Certificate | None = None,
        is_serving: Callable[[], bool] = lambda: True,
    ) -> None:
        metrics = make_wsgi_app(registry)

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if environ["PATH_INFO"] != "/health":
                pages: Iterable[bytes] = metrics(environ, start_response)
                return pages
            serving = is_serving()
            status = "200 OK" if serving else "503 Service Unavailable"
            start_response(status, [("Content-Type", "text/plain")])
            return [b"serving\n" if serving else b"not serving\n"]

        try:
            self._server = make_server(host, port, app, server_class=_Server, handler_class=_Handler)
        except OSError as error:
            raise OSError(f"metrics_port: cannot listen on {host}:{port}: {error.strerror}") from error
        if certificate is not None:
            # The handshake is left to the connection's own thread: a slow one holds up nobody.
            self._server.socket = certificate.ssl_context().wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port and join the thread. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that hangs up, or speaks no TLS, is no event."""


class _Handler(WSGIRequestHandler):
    timeout = _TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
