"""The gRPC server of a service: bind, serve, drain.

server = GrpcServer("127.0.0.1", 0, translate=..., on_error=...)   # bound: address is known
server.add(add_PrefillServiceServicer_to_server, servicer, "baton.v1.PrefillService")
await server.start()              # health says NOT_SERVING
server.set_serving(True)          # health says SERVING
print_ready(address=server.address)
await signals.first.wait()        # SIGTERM or SIGINT; the second one ends the process at once
server.set_serving(False)
...                               # let running requests end
await server.stop(grace_s=1)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common.channel import MAX_MESSAGE_BYTES, server_options
from services.common.errors import BatonError
from services.common.interceptor import Access, Context, ErrorListener, StatusInterceptor, Translate
from services.common.tls import Certificate, PeerConfig
from services.common.tracing import TracesConfig

Servicer = TypeVar("Servicer")

_ANY_HOST = ("0.0.0.0", "::", "[::]")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where a service listens.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0: a free one, named in the ready line.
        advertise_host: host that others reach this service by; empty: host, or the machine's name if
            that is 0.0.0.0.
        metrics_port: port of Prometheus metrics on `host`; 0: a free one; -1: none.
        drain_timeout_s: most seconds that running requests get to end after SIGTERM.
        log_level: "debug", "info", "warning" or "error".
        peers: certificates; needed to listen beyond loopback.
    """

    host: str = "127.0.0.1"
    port: int = 0
    advertise_host: str = ""
    metrics_port: int = 0
    drain_timeout_s: float = 30.0
    log_level: str = "info"
    peers: PeerConfig = field(default_factory=PeerConfig)
    traces: TracesConfig = field(default_factory=TracesConfig)

    def __post_init__(self) -> None:
        """Check ranges, and that no port is open by mistake."""
        self.check_reach("host", self.host)
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: must be from 0 to 65535, got {self.port}")
        if not -1 <= self.metrics_port <= 65535:
            raise ValueError(f"metrics_port: must be from -1 to 65535, got {self.metrics_port}")
        if self.drain_timeout_s < 0:
            raise ValueError(f"drain_timeout_s: must be at least 0, got {self.drain_timeout_s}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level: must be debug, info, warning or error, got {self.log_level!r}")

    def check_reach(self, flag: str, host: str) -> None:
        """Refuse, with a ValueError, to listen on a host that others can reach without certificates."""
        missing = "" if self.peers.peer_cert else "mutual TLS (--peer-cert, --peer-key, --peer-ca)"
        self.peers.check_reach(flag, host, missing)

    @property
    def public_host(self) -> str:
        """Host that others reach this service by."""
        return self.advertise_host or (socket.gethostname() if self.host in _ANY_HOST else self.host)


def no_translation(error: Exception) -> BatonError | None:
    """Know no errors of a lower layer."""
    return None


def ignore_error(error: BatonError) -> None:
    """Count nothing."""


def allow_all(method: str, context: Context) -> None:
    """Let everybody call everything."""


class GrpcServer:
    """A grpc.aio server with health, reflection and the status interceptor, bound on construction.

    Args:
        certificate: TLS; None: none. Its `ca`, if there is one, must have signed every caller's.
        access: who may call what; health and reflection are open.
        shares_port: other processes listen on the same port.
    Attributes:
        address: "host:port" as others reach it.
    Raises:
        OSError: the port cannot be bound; names it.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        advertise_host: str = "",
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        translate: Translate = no_translation,
        on_error: ErrorListener = ignore_error,
        certificate: Certificate | None = None,
        access: Access = allow_all,
        shares_port: bool = False,
    ) -> None:
        self._server = grpc.aio.server(
            interceptors=[StatusInterceptor(translate, on_error, access)],
            options=server_options(max_message_bytes, shares_port=shares_port),
        )
        try:
            if certificate is None:
                self.port = self._server.add_insecure_port(f"{host}:{port}")
            else:
                self.port = self._server.add_secure_port(f"{host}:{port}", certificate.server_credentials())
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error}") from error
        self.address = f"{advertise_host or host}:{self.port}"
        self._health = health.aio.HealthServicer()
        self._names = [health.SERVICE_NAME, reflection.SERVICE_NAME]

    def add(
        self, register: Callable[[Servicer, grpc.aio.Server], None], servicer: Servicer, name: str
    ) -> None:
        """Add a service before `start`; `name` is its full name, for health and reflection."""
        register(servicer, self._server)
        self._names.append(name)

    async def start(self) -> None:
        """Answer calls; health says NOT_SERVING until `set_serving(True)`."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(self._names, self._server)
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Set what grpc.health.v1 says of every service and of the server as a whole."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give running ones `grace_s` seconds, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


class StopSignals:
    """SIGTERM and SIGINT: the first sets `first`, the second ends the process with status 130."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self.first.is_set():
            os._exit(130)
        self.first.set()


def print_ready(**facts: str | int | float) -> None:
    """Tell whoever started the process that it serves: one line of JSON on standard output."""
    sys.stdout.write(json.dumps({"event": "ready", **facts}) + "\n")
    sys.stdout.flush()
