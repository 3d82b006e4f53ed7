"""PrefillService on a decode worker: computes prompts in the blocks that were reserved for them.

The life of such a request:

    1 Reserve    as ever; the answer, a KvTarget, names this worker
    2 Prefill    with that target: the reservation's own request joins this engine's batch as a prompt,
                 chunk by chunk beside the decoding ones. No block moves, and there is no second copy
    3 first      token: the answer to Prefill. All others go over the step stream

Ending the call before the first token ends the request; after it, nothing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

import grpc

from baton.v1 import kv_pb2, prefill_pb2, prefill_pb2_grpc
from engine.kv.layout import CacheGroup
from services.common.errors import BatonError, ErrorReason
from services.common.tracing import begin_request
from services.decode.reservation import Phase
from services.decode.reservations import Reservations
from services.worker.answers import first_token
from services.worker.intake import invalid
from services.worker.metrics import WorkerMetrics
from services.worker.spans import note_prompt

TRANSPORT = "in_place"
"""Named where a hand-off that moves nothing is told of."""


class InPlacePrefill(prefill_pb2_grpc.PrefillServiceServicer):
    """Serves PrefillService for the reservations of one worker."""

    def __init__(
        self,
        reservations: Reservations,
        peer: kv_pb2.KvPeer,
        groups: tuple[CacheGroup, ...],
        metrics: WorkerMetrics,
    ) -> None:
        self._reservations = reservations
        self._peer = peer
        self._groups = groups
        self._metrics = metrics

    def is_here(self, request: prefill_pb2.PrefillRequest) -> bool:
        """Whether the blocks of a prompt are to be this worker's, of this or an earlier incarnation."""
        return request.HasField("target") and request.target.peer.worker_id == self._peer.worker_id

    async def Prefill(  # noqa: N802
        self,
        request: prefill_pb2.PrefillRequest,
        context: grpc.aio.ServicerContext[prefill_pb2.PrefillRequest, prefill_pb2.PrefillResponse],
    ) -> AsyncGenerator[prefill_pb2.PrefillResponse, None]:
        """Compute one prompt in its reservation; see prefill.proto."""
        received_s = time.monotonic()
        target = request.target
        if not self.is_here(request):
            raise invalid(
                "target.peer.worker_id",
                f"a decode worker computes prompts for its own reservations only; this is "
                f"{self._peer.worker_id!r}, got {target.peer.worker_id!r}",
            )
        if target.peer.incarnation != self._peer.incarnation:
            raise BatonError(
                ErrorReason.RESERVATION_GONE,
                f"target.peer.incarnation: {target.peer.incarnation!r} made the reservation; this is "
                f"{self._peer.incarnation!r}",
            )
        reservation = self._reservations.compute(
            target.reservation_id, target.epoch, request.request_id, request.token_ids
        )
        assert reservation.in_place is not None
        span = begin_request("PrefillService.Prefill", request_id=request.request_id)
        try:
            first = await reservation.in_place.first
        finally:
            if reservation.phase is Phase.COMPUTING:
                span.end(error="CANCELLED")
                self._reservations.end(reservation, BatonError(ErrorReason.CANCELLED, "the call was ended"))
        answer = first_token(reservation.request, first.event, received_s, first.at)
        note_prompt(span, answer, received_s)
        span.end()
        self._metrics.queue_s.observe(answer.queue_s)
        self._metrics.compute_s.observe(answer.compute_s)
        yield prefill_pb2.PrefillResponse(first_token=answer)
        if answer.finish_reason:
            return
        num_blocks = sum(group.num_blocks_for(reservation.num_tokens) for group in self._groups)
        self._metrics.count_handoff("received", TRANSPORT, 0, 0)
        yield prefill_pb2.PrefillResponse(
            handed_over=prefill_pb2.HandedOver(transport=TRANSPORT, skipped_blocks=num_blocks)
        )

    async def Cancel(  # noqa: N802
        self,
        request: prefill_pb2.PrefillServiceCancelRequest,
        context: grpc.aio.ServicerContext[
            prefill_pb2.PrefillServiceCancelRequest, prefill_pb2.PrefillServiceCancelResponse
        ],
    ) -> prefill_pb2.PrefillServiceCancelResponse:
        """End a prompt that is being computed; see prefill.proto."""
        self._reservations.cancel_computing(request.request_id)
        return prefill_pb2.PrefillServiceCancelResponse()
