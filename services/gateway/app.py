"""The gateway's two servers over one Generator: gRPC and HTTP, in one event loop."""

from __future__ import annotations

from baton.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from baton.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from services.common.errors import BatonError
from services.common.server import GrpcServer
from services.gateway.config import GatewayConfig
from services.gateway.generator import Generator
from services.gateway.http.app import create_app
from services.gateway.http.server import HttpServer
from services.gateway.rpc.inference import InferenceServicer
from services.gateway.rpc.registry import RegistryServicer


class Gateway:
    """Bound on construction, serving after `start`.

    Must be made inside the event loop that it serves.

    Attributes:
        grpc_address, http_address: "host:port" as others reach them.
    Raises:
        ValueError: the model's directory cannot be used. OSError: a port cannot be bound.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self.generator = Generator(config)
        self._grpc = GrpcServer(
            config.host,
            config.grpc_port,
            advertise_host=config.advertise_host,
            max_message_bytes=config.max_body_bytes,
            on_error=self._count_error,
        )
        self._grpc.add(
            add_InferenceServiceServicer_to_server,
            InferenceServicer(self.generator),
            "baton.v1.InferenceService",
        )
        self._grpc.add(
            add_RegistryServiceServicer_to_server,
            RegistryServicer(self.generator),
            "baton.v1.RegistryService",
        )
        self._http = HttpServer(
            create_app(self.generator), config.host, config.http_port, advertise_host=config.advertise_host
        )
        self.grpc_address = self._grpc.address
        self.http_address = self._http.address

    async def start(self) -> None:
        """Answer on both ports."""
        await self._grpc.start()
        await self._http.start()
        await self._grpc.set_serving(True)

    async def stop(self) -> None:
        """Drain, then close everything."""
        await self._grpc.set_serving(False)
        await self.generator.drain(self._config.drain_timeout_s)
        await self._http.stop()
        await self._grpc.stop(grace_s=1)
        await self.generator.close()

    def _count_error(self, error: BatonError) -> None:
        self.generator.metrics.errors.labels(error.reason.name).inc()
