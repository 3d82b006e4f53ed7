"""Prometheus metrics of one process, on an HTTP port of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server


class MetricsServer:
    """Serves GET /metrics from a registry that belongs to this service alone.

    Modifies: opens a port and starts a daemon thread; `close` undoes both.

    Attributes:
        port: where it listens.
    Raises:
        OSError: the port cannot be bound; names it.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise OSError(f"metrics_port: cannot listen on {host}:{port}: {error.strerror}") from error
        self.port = self._server.server_port

    def close(self) -> None:
        """Close the port and join the thread. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
