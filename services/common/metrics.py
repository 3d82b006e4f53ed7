"""Prometheus metrics of one process, on an HTTP port of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector


class MetricsServer:
    """Serves GET /metrics from a registry that belongs to this service alone.

    Modifies: opens a port and starts a daemon thread; `close` undoes both.
    Raises:
        OSError: the port cannot be bound.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Close the port and join the thread. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def new_registry(*collectors: Collector) -> CollectorRegistry:
    """Return a registry with these collectors; each is asked anew at every scrape."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    return registry
