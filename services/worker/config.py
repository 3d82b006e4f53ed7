"""Settings that prefill and decode workers share, beside those of the engine and the server."""

from __future__ import annotations

from dataclasses import dataclass

TRANSPORTS = ("shared_memory", "zmq_tcp")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Who the worker is, and how it is reached.

    Attributes:
        worker_id: stable name; empty: made of role, host name and port.
        gateway: address of a gateway's gRPC port to register with; several: repeat, or separate by commas.
        transports: transports that may carry KV blocks, best first: shared_memory, zmq_tcp.
        allow_fallback: use a later transport when an earlier one that both sides name cannot be opened.
        kv_host: address that the data plane listens on; empty: the same as host.
        kv_port: port of the data plane; 0: a free one.
    """

    worker_id: str = ""
    gateway: tuple[str, ...] = ()
    transports: tuple[str, ...] = TRANSPORTS
    allow_fallback: bool = True
    kv_host: str = ""
    kv_port: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        unknown = [name for name in self.transports if name not in TRANSPORTS]
        if unknown or not self.transports:
            raise ValueError(f"transports: must be some of {', '.join(TRANSPORTS)}, got {unknown or 'none'}")
        for address in self.gateway:
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"gateway: must be host:port, got {address!r}")
        if not 0 <= self.kv_port <= 65535:
            raise ValueError(f"kv_port: must be from 0 to 65535, got {self.kv_port}")
