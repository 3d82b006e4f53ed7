"""RegistryService as the public port has it: to look at, not to join."""

from __future__ import annotations

from typing import Any, Never

import grpc

from baton.v1.registry_pb2 import ListWorkersRequest, ListWorkersResponse
from baton.v1.registry_pb2_grpc import RegistryServiceServicer
from services.common.errors import BatonError, ErrorReason
from services.gateway.generator import Generator
from services.gateway.rpc.registry import list_workers


class ClusterView(RegistryServiceServicer):
    """Serves ListWorkers, without how a worker's memory is reached, to keys that may see the cluster."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    async def ListWorkers(  # noqa: N802
        self,
        request: ListWorkersRequest,
        context: grpc.aio.ServicerContext[ListWorkersRequest, ListWorkersResponse],
    ) -> ListWorkersResponse:
        """Show the cluster."""
        self._generator.callers.identify_call(context).check_sees_cluster()
        shown = list_workers(self._generator)
        for worker in shown.workers:
            worker.info.ClearField("kv_peer")
        return shown

    async def Register(self, request: Any, context: Any) -> Never:  # noqa: N802
        """Refuse."""
        raise BatonError(ErrorReason.UNIMPLEMENTED, "workers register on the gateway's registry port")

    Beat = Deregister = Register
