"""Workers without a model: real gRPC servers whose next token is a function of all tokens before it.

So a stream is exact only if every token was computed from the whole prompt and every
token emitted before: one that is lost, doubled or taken from another attempt shows in
all that follow. Blocks are not moved; a shared table stands for the data plane.
"""

from __future__ import annotations

import asyncio
import zlib
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc

from baton.v1 import decode_pb2, decode_pb2_grpc, kv_pb2, prefill_pb2, prefill_pb2_grpc, registry_pb2
from baton.v1.sampling_pb2 import FinishReason, SamplingParams, TokenLogprob, TokenLogprobs
from services.common.errors import BatonError, ErrorReason
from services.common.ids import new_id, new_incarnation
from services.common.server import GrpcServer
from services.gateway.registry import Registry
from tests.support.byte_tokenizer import EOS, NUM_SPECIAL, VOCAB_SIZE

BLOCK_SIZE = 16
CONTEXT_LENGTH = 2048


def next_token(token_ids: Sequence[int], seed: int = 0) -> int:
    """Return the token that follows: a letter that depends on every token and on the seed."""
    digest = zlib.crc32(array("I", token_ids).tobytes(), seed & 0xFFFFFFFF)
    return NUM_SPECIAL + ord("a") + digest % 26


def expected(prompt: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """Return the answer of an undisturbed run."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, seed))
    return tokens[len(prompt) :]


def logprobs(token: int, sampling: SamplingParams) -> TokenLogprobs | None:
    """Return what is asked for: made-up values that name the token."""
    if not sampling.HasField("logprobs"):
        return None
    top = [TokenLogprob(token_id=token + i, logprob=-0.5 - i) for i in range(sampling.logprobs)]
    return TokenLogprobs(sampled=TokenLogprob(token_id=token, logprob=-0.5), top=top)


def finish_reason(tokens: Sequence[int], num_prompt: int, sampling: SamplingParams) -> FinishReason:
    """Return why the request ended with its last token, or 0."""
    if tokens[-1] in sampling.stop_token_ids or (tokens[-1] == EOS and not sampling.ignore_eos):
        return FinishReason.FINISH_REASON_STOP
    if len(tokens) - num_prompt >= sampling.max_tokens:
        return FinishReason.FINISH_REASON_LENGTH
    return FinishReason.FINISH_REASON_UNSPECIFIED


@dataclass
class Reservation:
    """One request on a decode worker."""

    request: decode_pb2.ReserveRequest
    reservation_id: str
    epoch: int = 1
    tokens: list[int] = field(default_factory=list)
    is_running: bool = False


class ScriptedDecode(decode_pb2_grpc.DecodeServiceServicer):
    """A decode worker.

    Attributes:
        capacity: reservations that fit; more wait.
        step_s: time of a step.
        on_reserve: told every request that Reserve got.
        reserve_errors: raised by the next calls of Reserve, in order.
        paused: no steps while it is set.
        held: what holds blocks now, by request id.
        log: request ids as Reserve got them, and "cancel <id>".
    """

    def __init__(self, worker_id: str, capacity: int, step_s: float) -> None:
        self.worker_id = worker_id
        self.incarnation = new_incarnation()
        self.capacity = capacity
        self.step_s = step_s
        self.on_reserve: Callable[[decode_pb2.ReserveRequest], None] = lambda request: None
        self.reserve_errors: list[BatonError] = []
        self.paused = False
        self.held: dict[str, Reservation] = {}
        self.log: list[str] = []
        self.waiting = 0
        self._room = asyncio.Condition()
        self._streams: dict[str, asyncio.Queue[decode_pb2.StreamStepsResponse | None]] = {}
        self._step = 0
        self._steps = asyncio.create_task(self._run())

    async def Reserve(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        self.log.append(f"{request.request_id} {len(request.token_ids)}")
        self.on_reserve(request)
        if self.reserve_errors:
            raise self.reserve_errors.pop(0)
        if request.reservation_id:
            held = self.held.get(request.request_id)
            if held is None or held.is_running:
                raise BatonError(ErrorReason.RESERVATION_GONE, "the reservation is gone")
            held.epoch += 1
            return self._answer(held)
        self.waiting += 1
        try:
            async with self._room:
                await self._room.wait_for(lambda: len(self.held) < self.capacity)
                held = Reservation(request, new_id(), tokens=list(request.token_ids))
                self.held[request.request_id] = held
        finally:
            self.waiting -= 1
        return self._answer(held)

    async def Cancel(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        self.log.append(f"cancel {request.request_id}")
        await self._free(request.request_id)
        return decode_pb2.DecodeServiceCancelResponse()

    async def StreamSteps(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        if request.gateway_id in self._streams:
            self._streams[request.gateway_id].put_nowait(None)
        queue = self._streams[request.gateway_id] = asyncio.Queue()
        yield decode_pb2.StreamStepsResponse(incarnation=self.incarnation)
        while (message := await queue.get()) is not None:
            yield message

    def commit(self, transfer_id: str, epoch: int, tokens: Sequence[int]) -> bool:
        """Take the prompt and the first token, as COMMIT would bring them; False: not expected."""
        held = next((one for one in self.held.values() if one.request.transfer_id == transfer_id), None)
        if held is None or held.epoch != epoch or held.is_running:
            return False
        held.tokens = list(tokens)
        held.is_running = True
        return True

    def break_streams(self) -> None:
        """End all streams, as a broken connection would; what is queued is lost."""
        for queue in self._streams.values():
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)
        self._streams.clear()

    async def fail(self, request_id: str, reason: str) -> None:
        """End a request with a failure."""
        held = self.held[request_id]
        failure = decode_pb2.RequestFailure(reason=reason, message="scripted")
        self._send(held.request.gateway_id, [decode_pb2.TokenEvent(request_id=request_id, failure=failure)])
        await self._free(request_id)

    def info_fields(self) -> dict[str, object]:
        """Return what WorkerInfo says of this worker alone."""
        peer = kv_pb2.KvPeer(worker_id=self.worker_id, incarnation=self.incarnation)
        return {"role": registry_pb2.WORKER_ROLE_DECODE, "kv_peer": peer}

    def stop(self) -> None:
        """Stop stepping."""
        self._steps.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.step_s)
            if self.paused:
                continue
            self._step += 1
            events: dict[str, list[decode_pb2.TokenEvent]] = {}
            for request_id, held in list(self.held.items()):
                if held.is_running:
                    event = self._advance(request_id, held)
                    events.setdefault(held.request.gateway_id, []).append(event)
                    if event.finish_reason:
                        await self._free(request_id)
            for gateway_id, group in events.items():
                self._send(gateway_id, group)

    def _advance(self, request_id: str, held: Reservation) -> decode_pb2.TokenEvent:
        sampling = held.request.sampling
        token = next_token(held.tokens, sampling.seed if sampling.temperature else 0)
        held.tokens.append(token)
        detail = logprobs(token, sampling)
        return decode_pb2.TokenEvent(
            request_id=request_id,
            token_ids=[token],
            logprobs=[detail] if detail else [],
            finish_reason=finish_reason(held.tokens, held.request.num_prompt_tokens, sampling),
        )

    def _send(self, gateway_id: str, events: list[decode_pb2.TokenEvent]) -> None:
        queue = self._streams.get(gateway_id)
        if queue is not None:
            queue.put_nowait(
                decode_pb2.StreamStepsResponse(incarnation=self.incarnation, step=self._step, events=events)
            )

    async def _free(self, request_id: str) -> None:
        if self.held.pop(request_id, None) is not None:
            async with self._room:
                self._room.notify_all()

    def _answer(self, held: Reservation) -> decode_pb2.ReserveResponse:
        target = kv_pb2.KvTarget(
            reservation_id=held.reservation_id,
            transfer_id=held.request.transfer_id,
            epoch=held.epoch,
            peer=kv_pb2.KvPeer(worker_id=self.worker_id, incarnation=self.incarnation),
            lease_ms=5000,
        )
        return decode_pb2.ReserveResponse(target=target)


Hook = Callable[[prefill_pb2.PrefillRequest], Awaitable[None]]


async def nothing(request: prefill_pb2.PrefillRequest) -> None:
    """Disturb nothing."""


class ScriptedPrefill(prefill_pb2_grpc.PrefillServiceServicer):
    """A prefill worker.

    Attributes:
        before_token, before_commit, after_commit: awaited there; may raise, wait, or disturb others.
        active: request ids that are being served.
        log: request ids and their numbers of tokens, as Prefill got them.
    """

    def __init__(self, worker_id: str, decodes: dict[str, ScriptedDecode]) -> None:
        self.worker_id = worker_id
        self.incarnation = new_incarnation()
        self.before_token: Hook = nothing
        self.before_commit: Hook = nothing
        self.after_commit: Hook = nothing
        self.active: set[str] = set()
        self.log: list[str] = []
        self._decodes = decodes

    async def Prefill(self, request, context) -> AsyncIterator[prefill_pb2.PrefillResponse]:  # type: ignore[no-untyped-def]  # noqa: N802
        self.log.append(f"{request.request_id} {len(request.token_ids)}")
        self.active.add(request.request_id)
        try:
            await self.before_token(request)
            tokens = list(request.token_ids)
            seed = request.sampling.seed if request.sampling.temperature else 0
            tokens.append(next_token(tokens, seed))
            reason = finish_reason(tokens, request.num_prompt_tokens, request.sampling)
            first = prefill_pb2.FirstToken(
                token_id=tokens[-1],
                cached_tokens=BLOCK_SIZE,
                finish_reason=reason,
                logprobs=logprobs(tokens[-1], request.sampling),
            )
            yield prefill_pb2.PrefillResponse(first_token=first)
            if reason or not request.HasField("target"):
                return
            await self.before_commit(request)
            target = request.target
            if not self._decodes[target.peer.worker_id].commit(target.transfer_id, target.epoch, tokens):
                raise BatonError(ErrorReason.RESERVATION_GONE, "decode does not expect this")
            await self.after_commit(request)
            handed = prefill_pb2.HandedOver(transport="fake", blocks=2, bytes=128, exposed_s=0.001)
            yield prefill_pb2.PrefillResponse(handed_over=handed)
        finally:
            self.active.discard(request.request_id)

    def info_fields(self) -> dict[str, object]:
        """Return what WorkerInfo says of this worker alone."""
        return {"role": registry_pb2.WORKER_ROLE_PREFILL}

    def stop(self) -> None:
        """Nothing runs by itself."""


class ScriptedCluster:
    """Scripted workers with their servers, listed in a gateway's registry as long as they live.

    Attributes:
        silent: ids of workers that do not beat.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._servers: dict[str, GrpcServer] = {}
        self._beats = asyncio.create_task(self._beat())
        self.silent: set[str] = set()
        self.decodes: dict[str, ScriptedDecode] = {}
        self.prefills: dict[str, ScriptedPrefill] = {}

    async def add_decode(
        self, worker_id: str, *, capacity: int = 100, step_s: float = 0.002, port: int = 0
    ) -> ScriptedDecode:
        """Start a decode worker; port 0: a free one."""
        worker = self.decodes[worker_id] = ScriptedDecode(worker_id, capacity, step_s)
        add = decode_pb2_grpc.add_DecodeServiceServicer_to_server
        await self._serve(worker, add, "DecodeService", port)
        return worker

    async def add_prefill(self, worker_id: str) -> ScriptedPrefill:
        """Start a prefill worker."""
        worker = self.prefills[worker_id] = ScriptedPrefill(worker_id, self.decodes)
        await self._serve(worker, prefill_pb2_grpc.add_PrefillServiceServicer_to_server, "PrefillService")
        return worker

    async def kill(self, worker_id: str) -> None:
        """End a worker's server at once; the registry is not told."""
        worker = self.decodes.get(worker_id) or self.prefills[worker_id]
        worker.stop()
        await self._servers.pop(worker_id).stop(0)

    def held(self) -> list[str]:
        """Return everything that any worker still holds, or that waits there."""
        held = [request_id for worker in self.decodes.values() for request_id in worker.held]
        held += ["waiting" for worker in self.decodes.values() for _ in range(worker.waiting)]
        return held + [request_id for worker in self.prefills.values() for request_id in worker.active]

    async def close(self) -> None:
        """Stop all workers."""
        self._beats.cancel()
        for worker_id in list(self._servers):
            await self.kill(worker_id)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            for worker in self._registry:
                if worker.info.worker_id in self._servers.keys() - self.silent:
                    load = registry_pb2.WorkerLoad(free_blocks=worker.info.num_blocks)
                    self._registry.beat(*worker.key, load, False)

    async def _serve(
        self,
        worker: ScriptedDecode | ScriptedPrefill,
        add: Callable[[object, grpc.aio.Server], None],
        service: str,
        port: int = 0,
    ) -> None:
        server = GrpcServer("127.0.0.1", port)
        server.add(add, worker, f"baton.v1.{service}")
        await server.start()
        self._servers[worker.worker_id] = server
        self._registry.register(
            registry_pb2.WorkerInfo(
                worker_id=worker.worker_id,
                incarnation=worker.incarnation,
                address=server.address,
                model="tiny",
                fingerprint="f",
                num_blocks=CONTEXT_LENGTH * 4 // BLOCK_SIZE,
                block_size=BLOCK_SIZE,
                context_length=CONTEXT_LENGTH,
                vocab_size=VOCAB_SIZE,
                **worker.info_fields(),  # type: ignore[arg-type]
            )
        )
