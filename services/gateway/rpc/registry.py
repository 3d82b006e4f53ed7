"""RegistryService: how workers join, and how people see the cluster."""

from __future__ import annotations

import grpc

from baton.v1.registry_pb2 import (
    BeatRequest,
    BeatResponse,
    DeregisterRequest,
    DeregisterResponse,
    ListWorkersRequest,
    ListWorkersResponse,
    RegisterRequest,
    RegisterResponse,
    WorkerStatus,
)
from baton.v1.registry_pb2_grpc import RegistryServiceServicer
from services.gateway.generator import Generator


class RegistryServicer(RegistryServiceServicer):
    """Serves RegistryService from a Generator's registry, to whoever the port lets in."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._registry = generator.registry
        self._beat_interval_ms = generator.config.beat_interval_ms

    async def Register(  # noqa: N802
        self, request: RegisterRequest, context: grpc.aio.ServicerContext[RegisterRequest, RegisterResponse]
    ) -> RegisterResponse:
        """List a worker."""
        worker = self._registry.register(request.worker)
        return RegisterResponse(
            beat_interval_ms=self._beat_interval_ms,
            receivers=self._registry.receivers(worker),
            sender_keys=self._registry.sender_keys(),
        )

    async def Beat(  # noqa: N802
        self, request: BeatRequest, context: grpc.aio.ServicerContext[BeatRequest, BeatResponse]
    ) -> BeatResponse:
        """Take a worker's report."""
        blocks = request.blocks if request.HasField("blocks") else None
        return self._registry.beat(
            request.worker_id, request.incarnation, request.load, request.draining, blocks
        )

    async def Deregister(  # noqa: N802
        self,
        request: DeregisterRequest,
        context: grpc.aio.ServicerContext[DeregisterRequest, DeregisterResponse],
    ) -> DeregisterResponse:
        """Take a worker off the list."""
        self._registry.deregister(request.worker_id, request.incarnation)
        return DeregisterResponse()

    async def ListWorkers(  # noqa: N802
        self,
        request: ListWorkersRequest,
        context: grpc.aio.ServicerContext[ListWorkersRequest, ListWorkersResponse],
    ) -> ListWorkersResponse:
        """Show the cluster."""
        return list_workers(self._generator)


def list_workers(generator: Generator) -> ListWorkersResponse:
    """Describe the cluster."""
    registry, admission = generator.registry, generator.admission
    return ListWorkersResponse(
        workers=[
            WorkerStatus(
                info=worker.info,
                load=worker.load,
                draining=worker.is_draining,
                silent_ms=registry.silent_ms(worker),
            )
            for worker in registry
        ],
        gateway_waiting=admission.waiting,
        gateway_in_flight=admission.in_flight,
    )
