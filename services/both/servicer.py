"""Both services on one engine: chunks of prompts ride along with decodes.

A prompt whose target is a reservation of this worker is computed there (services/decode/in_place.py):
the hand-off moves nothing. One for another worker's reservation, or for none, is computed and pushed
as on any prefill worker, and blocks from other prefill workers are taken as on any decode worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

import grpc

from baton.v1 import kv_pb2, prefill_pb2, prefill_pb2_grpc, registry_pb2
from baton.v1.decode_pb2_grpc import add_DecodeServiceServicer_to_server
from services.common.server import GrpcServer
from services.decode.servicer import DecodeServicer
from services.prefill.servicer import PrefillServicer


class BothServicer(prefill_pb2_grpc.PrefillServiceServicer):
    """Serves PrefillService by handing each prompt to the side that it is for."""

    role = registry_pb2.WORKER_ROLE_BOTH

    def __init__(self, prefill: PrefillServicer, decode: DecodeServicer) -> None:
        self._prefill = prefill
        self._decode = decode
        self.load = decode.load

    # The RPCs.

    async def Prefill(  # noqa: N802
        self,
        request: prefill_pb2.PrefillRequest,
        context: grpc.aio.ServicerContext[prefill_pb2.PrefillRequest, prefill_pb2.PrefillResponse],
    ) -> AsyncGenerator[prefill_pb2.PrefillResponse, None]:
        """Run one prompt; see prefill.proto."""
        in_place = self._decode.in_place
        side = in_place if in_place.is_here(request) else self._prefill
        async with contextlib.aclosing(side.Prefill(request, context)) as responses:
            async for response in responses:
                yield response

    async def Cancel(  # noqa: N802
        self,
        request: prefill_pb2.PrefillServiceCancelRequest,
        context: grpc.aio.ServicerContext[
            prefill_pb2.PrefillServiceCancelRequest, prefill_pb2.PrefillServiceCancelResponse
        ],
    ) -> prefill_pb2.PrefillServiceCancelResponse:
        """Stop a prompt on whichever side it is; see prefill.proto."""
        await self._decode.in_place.Cancel(request, context)
        return await self._prefill.Cancel(request, context)

    # The worker's life.

    def add_to(self, server: GrpcServer) -> None:
        """Add both services to a server."""
        server.add(add_DecodeServiceServicer_to_server, self._decode, "baton.v1.DecodeService")
        server.add(prefill_pb2_grpc.add_PrefillServiceServicer_to_server, self, "baton.v1.PrefillService")

    def kv_peer(self) -> kv_pb2.KvPeer | None:
        """How prefill workers reach this worker's blocks."""
        return self._decode.kv_peer()

    def on_receivers(self, receivers: Sequence[kv_pb2.KvPeer]) -> None:
        """Follow the receivers that gateways list."""
        self._prefill.on_receivers(receivers)

    def on_senders(self, public_keys: Sequence[str]) -> None:
        """Let the senders that gateways list connect."""
        self._decode.on_senders(public_keys)

    def drain(self) -> None:
        """Refuse new requests; those that hold a reservation may still be computed."""
        self._prefill.drain()
        self._decode.drain()

    async def idle(self) -> None:
        """Return when no request holds anything on either side."""
        await asyncio.gather(self._prefill.idle(), self._decode.idle())

    async def close(self) -> None:
        """End what is left on both sides."""
        await self._decode.close()
        await self._prefill.close()
