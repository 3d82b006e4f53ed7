"""PrefillService: one RPC a prompt.

The life of a request here:

    1 check        fields, layout fingerprint, room in the target; draining refuses
    2 begin        the transfer opens at once, so that the reservation's lease is renewed while we queue
    3 submit       the engine runs the prompt in chunks; blocks stay held
    4 push         each full block goes out while the next chunk computes (BlocksFilled), those of the
                   last chunk layer by layer while it computes (BlocksFilling, layer_watch.py); those that
                   the receiver's prefix cache holds are skipped. Where both have one pool (the vault)
                   the prompt is computed in the receiver's own blocks, and nothing is moved
    5 first token  goes to the gateway at once, COMMIT to the receiver just before it; 4 and COMMIT
                   happen on the engine's thread (hand_off.py), all else on the event loop
    6 hand over    the receiver acknowledged; the blocks are freed, the stream ends

If the first token ends the answer there is nothing to hand over: the transfer is failed
(FINISHED), the stream ends after the token, and the gateway cancels the reservation.
Cancel, deadline or disconnect at any moment fails the transfer; the engine frees the
blocks when nobody reads them any more (run.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Sequence

import grpc

from baton.v1 import kv_pb2, prefill_pb2, prefill_pb2_grpc, registry_pb2
from engine.events import BlocksFilling, StepEvents
from engine.request import GivenBlocks
from kvtransfer.peer import Peer
from kvtransfer.sender import Sender
from services.common.errors import BatonError, ErrorReason
from services.common.server import GrpcServer
from services.common.tracing import Span, request_span
from services.prefill.layer_watch import LayerWatch
from services.prefill.peers import PeerLinks
from services.prefill.run import HandedOver, PrefillRun, Sampled
from services.worker.answers import first_token
from services.worker.engine_host import EngineHost
from services.worker.intake import compile_grammar, engine_request, invalid
from services.worker.metrics import LoadReporter, WorkerMetrics
from services.worker.requests_in_flight import InFlight
from services.worker.spans import note_prompt

Context = grpc.aio.ServicerContext[prefill_pb2.PrefillRequest, prefill_pb2.PrefillResponse]


_END_TIMEOUT_S = 2.0


class PrefillServicer(prefill_pb2_grpc.PrefillServiceServicer):
    """Serves PrefillService on one engine and one sender."""

    role = registry_pb2.WORKER_ROLE_PREFILL

    def __init__(self, host: EngineHost, sender: Sender, metrics: WorkerMetrics) -> None:
        self._built = host.built
        self._engine = host.engine
        self._fingerprint = host.fingerprint
        self._block_sizes = tuple(group.block_size for group in host.built.layout.groups)
        self._sender = sender
        self._peers = PeerLinks(sender, metrics)
        self._metrics = metrics
        self._runs: InFlight[PrefillRun] = InFlight()
        self._layers = LayerWatch()
        self._numbers = itertools.count(1)
        self._draining = False
        self.load = LoadReporter(host.engine.stats, metrics, lambda stats: stats.computed_tokens)
        host.events.attach_at_once(self._hand_over)
        host.events.attach(self._on_step)

    # The RPCs.

    async def Prefill(  # noqa: N802
        self, request: prefill_pb2.PrefillRequest, context: Context
    ) -> AsyncGenerator[prefill_pb2.PrefillResponse, None]:
        """Run one prompt; see prefill.proto."""
        with request_span("PrefillService.Prefill", request_id=request.request_id) as span:
            async with contextlib.aclosing(self._run(request, span)) as responses:
                async for response in responses:
                    yield response

    async def Cancel(  # noqa: N802
        self,
        request: prefill_pb2.PrefillServiceCancelRequest,
        context: grpc.aio.ServicerContext[
            prefill_pb2.PrefillServiceCancelRequest, prefill_pb2.PrefillServiceCancelResponse
        ],
    ) -> prefill_pb2.PrefillServiceCancelResponse:
        """Stop every attempt at a request; see prefill.proto."""
        for run in self._runs:
            if run.request_id == request.request_id:
                run.fail(BatonError(ErrorReason.CANCELLED, "cancelled"))
        return prefill_pb2.PrefillServiceCancelResponse()

    # The worker's life.

    def add_to(self, server: GrpcServer) -> None:
        """Add the service to a server."""
        server.add(prefill_pb2_grpc.add_PrefillServiceServicer_to_server, self, "baton.v1.PrefillService")

    def kv_peer(self) -> kv_pb2.KvPeer | None:
        """Nothing is sent here."""
        return None

    def on_receivers(self, receivers: Sequence[kv_pb2.KvPeer]) -> None:
        """Follow the receivers that gateways list."""
        self._peers.update(receivers)

    def on_senders(self, public_keys: Sequence[str]) -> None:
        """Nothing is received here."""

    def drain(self) -> None:
        """Refuse new prompts."""
        self._draining = True

    async def idle(self) -> None:
        """Return when no run holds anything."""
        await self._runs.empty()

    async def close(self) -> None:
        """Stop what still runs, and the sender."""
        for run in self._runs:
            run.fail(BatonError(ErrorReason.DRAINING, "the worker is shutting down"))
        # What is computed in place must have ended before the sender counts as gone.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._runs.empty(), _END_TIMEOUT_S)
        await self._peers.close()
        await asyncio.to_thread(self._layers.close)
        await asyncio.to_thread(self._sender.close)

    # Steps of a request.

    async def _run(
        self, request: prefill_pb2.PrefillRequest, span: Span
    ) -> AsyncGenerator[prefill_pb2.PrefillResponse, None]:
        received_s = time.monotonic()
        run = await self._new_run(request)
        run.span = span
        engine_id = run.request.request_id
        self._runs.add(engine_id, run)
        submitted = False
        try:
            if request.HasField("target"):
                await self._begin(run, request.target)
            self._engine.submit(run.request)
            submitted = True
            news = await run.news.get()
            if not isinstance(news, Sampled):
                raise _unexpected(news)
            answer = first_token(run.request, news.event, received_s, news.at)
            note_prompt(span, answer, received_s)
            self._metrics.queue_s.observe(answer.queue_s)
            self._metrics.compute_s.observe(answer.compute_s)
            yield prefill_pb2.PrefillResponse(first_token=answer)
            if news.event.finish_reason is not None:
                run.end("FINISHED", "the first token ended the answer")
                return
            if not request.HasField("target"):
                return
            news = await run.news.get()
            if not isinstance(news, HandedOver):
                raise _unexpected(news)
            yield prefill_pb2.PrefillResponse(
                handed_over=prefill_pb2.HandedOver(
                    transport=news.stats.transport,
                    blocks=news.stats.blocks,
                    bytes=news.stats.bytes,
                    skipped_blocks=run.skipped_blocks,
                    exposed_s=news.exposed_s,
                )
            )
        finally:
            run.end(ErrorReason.CANCELLED.name, "the gateway ended the call")
            if not submitted:
                if run.hand_off is not None:
                    run.hand_off.settle()
                self._runs.remove(engine_id)

    async def _new_run(self, message: prefill_pb2.PrefillRequest) -> PrefillRun:
        if self._draining:
            raise BatonError(ErrorReason.DRAINING, "the worker is shutting down")
        # Attempts at one request may overlap for a moment, so each has an id of its own.
        request = engine_request(
            message,
            f"{message.request_id}/{next(self._numbers)}",
            grammar=await compile_grammar(message, self._built.grammars),
            hold_blocks=True,
            max_new_tokens=1,
        )
        skip_tokens = 0
        if message.HasField("target"):
            self._check_target(message.target, request.num_tokens)
            skip_tokens = message.target.num_cached_tokens
        return PrefillRun(
            message.request_id, request, self._engine, self._block_sizes, skip_tokens, self._metrics
        )

    def _check_target(self, target: kv_pb2.KvTarget, num_tokens: int) -> None:
        for field in ("reservation_id", "transfer_id", "epoch", "lease_ms"):
            if not getattr(target, field):
                raise invalid(f"target.{field}", "must be set")
        for region in target.peer.regions:
            if region.fingerprint != self._fingerprint:
                raise BatonError(
                    ErrorReason.LAYOUT_MISMATCH,
                    f"target.peer.regions[{region.group!r}]: fingerprint {region.fingerprint!r} of worker "
                    f"{target.peer.worker_id!r} is not {self._fingerprint!r}, which this worker has",
                )
        groups = self._built.layout.groups
        if len(target.block_ids) != len(groups):
            raise invalid("target.block_ids", f"must have {len(groups)} lists, got {len(target.block_ids)}")
        for group, blocks in zip(groups, target.block_ids, strict=True):
            needed = group.num_blocks_for(num_tokens)
            if len(blocks.ids) < needed:
                raise invalid(
                    "target.block_ids",
                    f"{num_tokens} tokens need {needed} blocks of {group.name!r}, got {len(blocks.ids)}",
                )

    async def _begin(self, run: PrefillRun, target: kv_pb2.KvTarget) -> None:
        peer = Peer.from_proto(target.peer)
        await self._peers.open(peer)
        block_ids = tuple(tuple(blocks.ids) for blocks in target.block_ids)
        lease_s = target.lease_ms / 1000
        in_place = self._sender.shares_pool_with(peer)
        transfer = self._sender.begin(
            peer, target.transfer_id, target.epoch, block_ids, lease_s, in_place=in_place
        )
        run.attach(transfer, in_place=in_place)
        if in_place:
            await asyncio.wrap_future(transfer.opened)
            run.request.given = GivenBlocks(block_ids, target.num_cached_tokens, transfer.writable)

    def _hand_over(self, step: StepEvents, at: float) -> None:
        """Push and commit what the step brought; on the engine's thread."""
        if not len(self._runs):
            return
        filling = []
        for event in step.events:
            run = self._runs.get(event.request_id)
            if run is None or run.hand_off is None:
                continue
            if isinstance(event, BlocksFilling):
                filling.append((run.hand_off, event))
            else:
                run.hand_off.on_event(event, at)
        if filling:
            self._layers.follow(filling)

    def _on_step(self, step: StepEvents, at: float) -> None:
        for event in step.events:
            run = self._runs.get(event.request_id)
            if run is not None and run.on_event(event, at):
                self._runs.remove(event.request_id)


def _unexpected(news: Sampled | HandedOver | BatonError) -> BatonError:
    if isinstance(news, BatonError):
        return news
    return BatonError(ErrorReason.INTERNAL, f"{type(news).__name__} out of order")
