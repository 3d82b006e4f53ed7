"""DecodeService: reservations in, tokens out.

The life of a request here:

    1 Reserve    waits in the engine's queue until its blocks are set aside, all or nothing; then
                 the receiver expects the transfer, and the answer says where to send
    2 hand-off   the prefill worker writes the blocks (kvtransfer/receiver.py); nothing reads them
    3 COMMIT     checked against the reservation on the receiver's thread, then the request joins the batch
    4 steps      all tokens of one engine step for one gateway are one message (outbox.py)
    5 the end    the last token, Cancel, a lapsed lease or a lost gateway frees the blocks

A prompt that this worker computes itself, in its reservation, skips 2 and 3 (in_place.py).
What may go wrong between 1 and 3 is in reservations.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Sequence

import grpc

from baton.v1 import decode_pb2, decode_pb2_grpc, kv_pb2, prefill_pb2_grpc, registry_pb2
from kvtransfer.events import ReceiverEvent
from kvtransfer.receiver import Receiver
from services.common.errors import BatonError, ErrorReason
from services.common.ids import new_id
from services.common.logs import log
from services.common.server import GrpcServer
from services.common.tracing import request_span
from services.decode.config import LeaseConfig
from services.decode.in_place import InPlacePrefill
from services.decode.outbox import Outboxes
from services.decode.reservation import Reservation
from services.decode.reservations import Reservations
from services.worker.bridge import LoopBridge
from services.worker.engine_host import EngineHost
from services.worker.intake import compile_grammar, engine_request, invalid
from services.worker.metrics import LoadReporter, WorkerMetrics

_logger = logging.getLogger(__name__)


class DecodeServicer(decode_pb2_grpc.DecodeServiceServicer):
    """Serves DecodeService on one engine and one receiver.

    Attributes:
        in_place: serves PrefillService for prompts that are computed in their reservation here.
    """

    role = registry_pb2.WORKER_ROLE_DECODE

    def __init__(
        self,
        host: EngineHost,
        receiver: Receiver,
        receiver_events: LoopBridge[ReceiverEvent],
        config: LeaseConfig,
        metrics: WorkerMetrics,
    ) -> None:
        self._grammars = host.built.grammars
        self._receiver = receiver
        self._peer = receiver.peer.to_proto()
        self._config = config
        self._metrics = metrics
        self._draining = False
        self._outboxes = Outboxes(self._peer.incarnation, config, self._on_gateway_lost)
        self._reservations = Reservations(
            host,
            receiver,
            config.lease_s,
            metrics,
            lambda gateway_id, step, events: self._outboxes.of(gateway_id).put(step, events),
        )
        self.in_place = InPlacePrefill(self._reservations, self._peer, host.built.layout.groups, metrics)
        self.load = LoadReporter(host.engine.stats, metrics, lambda stats: stats.sampled_tokens)
        host.events.attach(self._reservations.on_step)
        receiver_events.attach_at_once(self._reservations.fill)
        receiver_events.attach(self._reservations.on_receiver_event)

    # The RPCs.

    async def Reserve(  # noqa: N802
        self,
        request: decode_pb2.ReserveRequest,
        context: grpc.aio.ServicerContext[decode_pb2.ReserveRequest, decode_pb2.ReserveResponse],
    ) -> decode_pb2.ReserveResponse:
        """Set blocks aside, or open a reservation again; see decode.proto."""
        self._receiver.welcome(request.sender_keys)
        for field in ("request_id", "gateway_id", "transfer_id"):
            if not getattr(request, field):
                raise invalid(field, "must not be empty")
        if request.reservation_id:
            reopened = self._reservations.reopen(
                request.reservation_id, request.request_id, request.transfer_id
            )
            return self._answer(reopened, queue_s=0.0)
        if self._draining:
            raise BatonError(ErrorReason.DRAINING, "the worker is shutting down")
        grammar = await compile_grammar(request, self._grammars)
        reservation = Reservation(
            request.request_id,
            request.gateway_id,
            request.transfer_id,
            engine_request(request, new_id(), grammar=grammar),
        )
        # So that the grace period of a gateway without a stream begins now.
        self._outboxes.of(request.gateway_id)
        started_s = time.monotonic()
        with request_span("DecodeService.Reserve", request_id=request.request_id) as reservation.span:
            await self._reservations.open(reservation)
        queue_s = time.monotonic() - started_s
        self._metrics.queue_s.observe(queue_s)
        return self._answer(reservation, queue_s)

    async def Cancel(  # noqa: N802
        self,
        request: decode_pb2.DecodeServiceCancelRequest,
        context: grpc.aio.ServicerContext[
            decode_pb2.DecodeServiceCancelRequest, decode_pb2.DecodeServiceCancelResponse
        ],
    ) -> decode_pb2.DecodeServiceCancelResponse:
        """Free a reservation or stop a running request; see decode.proto."""
        self._reservations.cancel(request.request_id)
        return decode_pb2.DecodeServiceCancelResponse()

    async def StreamSteps(  # noqa: N802
        self,
        request: decode_pb2.StreamStepsRequest,
        context: grpc.aio.ServicerContext[decode_pb2.StreamStepsRequest, decode_pb2.StreamStepsResponse],
    ) -> AsyncGenerator[decode_pb2.StreamStepsResponse, None]:
        """Carry the tokens of one gateway; see decode.proto."""
        if not request.gateway_id:
            raise invalid("gateway_id", "must not be empty")
        async with contextlib.aclosing(self._outboxes.of(request.gateway_id).stream()) as messages:
            async for message in messages:
                yield message

    # The worker's life.

    def add_to(self, server: GrpcServer) -> None:
        """Add the services to a server."""
        server.add(decode_pb2_grpc.add_DecodeServiceServicer_to_server, self, "baton.v1.DecodeService")
        server.add(
            prefill_pb2_grpc.add_PrefillServiceServicer_to_server, self.in_place, "baton.v1.PrefillService"
        )

    def kv_peer(self) -> kv_pb2.KvPeer | None:
        """How prefill workers reach this worker's blocks."""
        return self._peer

    def on_receivers(self, receivers: Sequence[kv_pb2.KvPeer]) -> None:
        """Nothing is sent from here."""

    def on_senders(self, public_keys: Sequence[str]) -> None:
        """Let the senders that gateways list connect."""
        self._receiver.welcome(public_keys)

    def drain(self) -> None:
        """Refuse new reservations; those held may still be filled."""
        self._draining = True

    async def idle(self) -> None:
        """Return when no request holds anything."""
        await self._reservations.held.empty()

    async def close(self) -> None:
        """End what still runs, end the streams, and stop the receiver."""
        self._reservations.fail_all(BatonError(ErrorReason.DRAINING, "the worker is shutting down"))
        self._outboxes.close()
        await asyncio.to_thread(self._receiver.close)

    def _answer(self, reservation: Reservation, queue_s: float) -> decode_pb2.ReserveResponse:
        granted = reservation.granted.result()
        target = kv_pb2.KvTarget(
            reservation_id=reservation.reservation_id,
            transfer_id=reservation.transfer_id,
            epoch=reservation.epoch,
            peer=self._peer,
            block_ids=[kv_pb2.KvBlockIds(ids=ids) for ids in granted.block_ids],
            num_cached_tokens=granted.num_cached_tokens,
            lease_ms=round(self._config.lease_s * 1000),
        )
        return decode_pb2.ReserveResponse(target=target, queue_s=queue_s)

    def _on_gateway_lost(self, gateway_id: str) -> None:
        message = f"the gateway had no stream for {self._config.stream_grace_s:g} s"
        num_lost = self._reservations.end_all_of(gateway_id, BatonError(ErrorReason.CANCELLED, message))
        if num_lost:
            log(_logger, logging.WARNING, "gateway lost", gateway=gateway_id, requests=num_lost)
