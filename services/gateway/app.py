"""The gateway's servers over one Generator, in one event loop.

    gRPC       InferenceService, and a view of the cluster    public: TLS, API keys
    HTTP       OpenAI's API, the page                         public: TLS, API keys
    registry   RegistryService, for workers                   the cluster's: mutual TLS
    metrics    /metrics and /health                           whoever reaches the port

Without a registry port workers register on the gRPC port: so it is on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib

from baton.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from baton.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from services.common.errors import BatonError
from services.common.metrics import MetricsServer
from services.common.peer_access import require_peer
from services.common.server import GrpcServer, allow_all
from services.gateway.config import GatewayConfig
from services.gateway.generator import Generator
from services.gateway.http.app import create_app
from services.gateway.http.server import HttpServer
from services.gateway.rpc.cluster_view import ClusterView
from services.gateway.rpc.inference import InferenceServicer
from services.gateway.rpc.registry import RegistryServicer


class Gateway:
    """Bound on construction, serving after `start`.

    Must be made inside the event loop that it serves.

    Attributes:
        grpc_address, http_address, registry_address: "host:port" as others reach them.
    Raises:
        ValueError: the model's directory, or the file of keys, cannot be used.
        OSError: a port cannot be bound.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self.generator = Generator(config)
        self._grpc = self._public_server()
        self._registry = self._registry_server()
        shares_ports = config.processes > 1
        self._http = HttpServer(
            create_app(self.generator),
            config.host,
            config.http_port,
            advertise_host=config.advertise_host,
            certificate=config.access.certificate,
            shares_port=shares_ports,
        )
        self._metrics: MetricsServer | None = None
        if config.metrics_port >= 0:
            self._metrics = MetricsServer(
                self.generator.metrics.registry,
                config.host,
                config.metrics_port,
                config.peers.certificate,
                lambda: not self.generator.admission.is_draining,
            )
        self.grpc_address = self._grpc.address
        self.http_address = self._http.address
        self.registry_address = (self._registry or self._grpc).address

    async def start(self) -> None:
        """Answer on all ports."""
        if self._registry is not None:
            await self._registry.start()
            await self._registry.set_serving(True)
        if self._config.process_index >= 0:
            await self._await_workers()
        await self._grpc.start()
        await self._http.start()
        await self._grpc.set_serving(True)

    async def stop(self) -> None:
        """Drain, then close everything."""
        await self._grpc.set_serving(False)
        await self.generator.drain(self._config.drain_timeout_s)
        await self._http.stop()
        await self._grpc.stop(grace_s=1)
        if self._registry is not None:
            await self._registry.stop(grace_s=0)
        if self._metrics is not None:
            self._metrics.close()
        await self.generator.close()

    async def _await_workers(self) -> None:
        """Let connections wait, not fail: the process may be one born again among others that serve."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.worker_wait_s):
                while not self.generator.model.is_ready:
                    await self.generator.registry.changed()

    def _public_server(self) -> GrpcServer:
        config = self._config
        server = GrpcServer(
            config.host,
            config.grpc_port,
            advertise_host=config.advertise_host,
            max_message_bytes=config.max_body_bytes,
            on_error=self._count_error,
            certificate=config.access.certificate,
            shares_port=config.processes > 1,
        )
        inference = InferenceServicer(self.generator)
        server.add(add_InferenceServiceServicer_to_server, inference, "baton.v1.InferenceService")
        is_alone = config.registry_port < 0
        registry = RegistryServicer(self.generator) if is_alone else ClusterView(self.generator)
        server.add(add_RegistryServiceServicer_to_server, registry, "baton.v1.RegistryService")
        return server

    def _registry_server(self) -> GrpcServer | None:
        config = self._config
        if config.registry_port < 0:
            return None
        certificate = config.peers.certificate
        server = GrpcServer(
            config.host,
            config.registry_port,
            advertise_host=config.advertise_host,
            on_error=self._count_error,
            certificate=certificate,
            access=allow_all if certificate is None else require_peer("worker", "gateway"),
        )
        registry = RegistryServicer(self.generator)
        server.add(add_RegistryServiceServicer_to_server, registry, "baton.v1.RegistryService")
        return server

    def _count_error(self, error: BatonError) -> None:
        self.generator.metrics.errors.labels(error.reason.name).inc()
