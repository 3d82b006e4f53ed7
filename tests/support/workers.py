"""Workers of every role inside the test's process, with real gRPC, engines and transports."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from baton.v1 import decode_pb2, decode_pb2_grpc, kv_pb2, prefill_pb2, prefill_pb2_grpc, sampling_pb2
from engine.config import EngineConfig
from engine.stats import EngineStats
from services.both.worker import make_worker as make_both
from services.common.channel import open_channel
from services.common.server import ServerConfig
from services.decode.config import DecodeConfig, LeaseConfig
from services.decode.worker import make_worker as make_decode
from services.prefill.config import PrefillConfig
from services.prefill.worker import make_worker as make_prefill
from services.worker.config import TRANSPORTS, WorkerConfig
from services.worker.runtime import Worker

BLOCK_SIZE = 16
GATEWAY = "gateway-1"


def engine_config(model: Path, *, num_blocks: int = 64, **settings: int | str | bool) -> EngineConfig:
    """Settings for a tiny model; `num_blocks` for the shape of tiny_models.TinyLlama."""
    block_bytes = 2 * 2 * 2 * BLOCK_SIZE * 8 * 4
    defaults: dict[str, int | str | bool] = {
        "block_size": BLOCK_SIZE,
        "kv_bytes": num_blocks * block_bytes,
        "max_step_tokens": 64,
        "max_chunk_tokens": 32,
        "threads": 1,
    }
    return EngineConfig(str(model), "tiny", **(defaults | settings))


@contextlib.asynccontextmanager
async def prefill_worker(
    engine: EngineConfig,
    *,
    gateway: Sequence[str] = (),
    transports: Sequence[str] = TRANSPORTS,
    vault: str = "",
    metrics_port: int = -1,
) -> AsyncIterator[Worker]:
    """Run a prefill worker."""
    worker_config = WorkerConfig(gateway=tuple(gateway), transports=tuple(transports), vault=vault)
    worker = make_prefill(PrefillConfig(ServerConfig(metrics_port=metrics_port), worker_config, engine))
    async with _running(worker):
        yield worker


@contextlib.asynccontextmanager
async def decode_worker(
    engine: EngineConfig,
    *,
    gateway: Sequence[str] = (),
    transports: Sequence[str] = TRANSPORTS,
    leases: LeaseConfig | None = None,
    vault: str = "",
    metrics_port: int = -1,
) -> AsyncIterator[Worker]:
    """Run a decode worker."""
    worker_config = WorkerConfig(gateway=tuple(gateway), transports=tuple(transports), vault=vault)
    worker = make_decode(
        DecodeConfig(ServerConfig(metrics_port=metrics_port), worker_config, engine, leases or LeaseConfig())
    )
    async with _running(worker):
        yield worker


@contextlib.asynccontextmanager
async def both_worker(
    engine: EngineConfig,
    *,
    gateway: Sequence[str] = (),
    transports: Sequence[str] = TRANSPORTS,
    leases: LeaseConfig | None = None,
    metrics_port: int = -1,
) -> AsyncIterator[Worker]:
    """Run a co-located worker."""
    worker_config = WorkerConfig(gateway=tuple(gateway), transports=tuple(transports))
    worker = make_both(
        DecodeConfig(ServerConfig(metrics_port=metrics_port), worker_config, engine, leases or LeaseConfig())
    )
    async with _running(worker):
        yield worker


@contextlib.asynccontextmanager
async def _running(worker: Worker) -> AsyncIterator[Worker]:
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop(drain_s=0)


async def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until a condition holds; fails the test if it does not in time."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "not in time"
        await asyncio.sleep(0.005)


async def all_free(*workers: Worker) -> None:
    """Wait until the workers hold nothing, and check their engines."""

    def stats() -> list[EngineStats]:
        return [worker.host.engine.stats() for worker in workers]

    await eventually(lambda: all(s.used_blocks == s.running == s.waiting == s.reserved == 0 for s in stats()))
    for worker in workers:
        await asyncio.wait_for(worker.service.idle(), 5)
        worker.host.engine.check_invariants()


class Pair:
    """A gateway's view of one prefill and one decode worker: what it calls, in order.

    Attributes:
        tokens, failures, finished: by request id, from the step stream.
    """

    def __init__(self, prefill: Worker | None, decode: Worker, gateway_id: str = GATEWAY) -> None:
        self.gateway_id = gateway_id
        self._prefill_channel = open_channel((prefill or decode).server.address)
        self._decode_channel = open_channel(decode.server.address)
        self._has_prefill = prefill is not None
        self.prefill = prefill_pb2_grpc.PrefillServiceStub(self._prefill_channel)
        self.decode = decode_pb2_grpc.DecodeServiceStub(self._decode_channel)
        self.tokens: dict[str, list[int]] = {}
        self.finished: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        self.messages: list[decode_pb2.StreamStepsResponse] = []
        self._numbers = itertools.count(1)
        self._stream: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Pair:
        await self.attach()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.detach()
        await self._prefill_channel.close()
        await self._decode_channel.close()

    async def attach(self) -> None:
        """Open the step stream."""
        opened = asyncio.Event()
        self._stream = asyncio.create_task(self._read_steps(opened))
        await asyncio.wait_for(opened.wait(), 5)

    async def detach(self) -> None:
        """Break the step stream."""
        if self._stream is not None:
            self._stream.cancel()
            await asyncio.gather(self._stream, return_exceptions=True)
            self._stream = None

    async def reserve(
        self,
        tokens: Sequence[int],
        sampling: sampling_pb2.SamplingParams,
        *,
        request_id: str = "",
        num_prompt_tokens: int | None = None,
        timeout: float = 10,
        **fields: str | int,
    ) -> decode_pb2.ReserveResponse:
        """Reserve for a new request, or open `reservation_id` again."""
        request_id = request_id or f"r{next(self._numbers)}"
        request = decode_pb2.ReserveRequest(
            request_id=request_id,
            gateway_id=self.gateway_id,
            token_ids=tokens,
            num_prompt_tokens=num_prompt_tokens or len(tokens),
            sampling=sampling,
            transfer_id=f"t-{request_id}",
            **fields,
        )
        return await self.decode.Reserve(request, timeout=timeout)

    def start_prefill(
        self,
        tokens: Sequence[int],
        sampling: sampling_pb2.SamplingParams,
        target: kv_pb2.KvTarget | None,
        *,
        request_id: str = "p",
        num_prompt_tokens: int | None = None,
        timeout: float = 20,
    ):
        """Start a Prefill call."""
        request = prefill_pb2.PrefillRequest(
            request_id=request_id,
            token_ids=tokens,
            num_prompt_tokens=num_prompt_tokens or len(tokens),
            sampling=sampling,
            target=target,
        )
        return self.prefill.Prefill(request, timeout=timeout)

    async def generate(
        self,
        tokens: Sequence[int],
        sampling: sampling_pb2.SamplingParams,
        *,
        emitted: Sequence[int] = (),
        request_id: str = "",
    ) -> tuple[list[int], prefill_pb2.FirstToken, prefill_pb2.HandedOver | None]:
        """Run a request to its end, as a gateway does.

        Args:
            emitted: tokens of the answer that a lost worker gave.
        """
        request_id = request_id or f"r{next(self._numbers)}"
        num_prompt_tokens, tokens = len(tokens), [*tokens, *emitted]
        reserved = await self.reserve(
            tokens, sampling, request_id=request_id, num_prompt_tokens=num_prompt_tokens
        )
        call = self.start_prefill(
            tokens,
            sampling,
            reserved.target,
            request_id=request_id,
            num_prompt_tokens=num_prompt_tokens,
        )
        responses = [response async for response in call]
        first = responses[0].first_token
        if first.finish_reason:
            await self.cancel(request_id)
            return [first.token_id], first, None
        await eventually(lambda: request_id in self.finished or request_id in self.failures, 20)
        assert request_id not in self.failures, self.failures
        return [first.token_id, *self.tokens[request_id]], first, responses[1].handed_over

    async def generate_and_cancel(
        self, tokens: Sequence[int], sampling: sampling_pb2.SamplingParams, after_s: float
    ) -> None:
        """Begin a request, and cancel it on both workers after a while, wherever it is."""
        request_id = f"cancelled-{next(self._numbers)}"
        task = asyncio.create_task(self.generate(tokens, sampling, request_id=request_id))
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.cancel(request_id)

    async def cancel(self, request_id: str) -> None:
        """Cancel on both workers."""
        await self.decode.Cancel(decode_pb2.DecodeServiceCancelRequest(request_id=request_id), timeout=5)
        if self._has_prefill:
            await self.prefill.Cancel(
                prefill_pb2.PrefillServiceCancelRequest(request_id=request_id), timeout=5
            )

    async def _read_steps(self, opened: asyncio.Event) -> None:
        call = self.decode.StreamSteps(decode_pb2.StreamStepsRequest(gateway_id=self.gateway_id))
        try:
            async for message in call:
                self.messages.append(message)
                opened.set()
                for event in message.events:
                    self.tokens.setdefault(event.request_id, []).extend(event.token_ids)
                    if event.finish_reason:
                        self.finished[event.request_id] = event.finish_reason
                    if event.HasField("failure"):
                        self.failures[event.request_id] = event.failure.reason
        finally:
            call.cancel()


def greedy(max_tokens: int, **fields: bool | int) -> sampling_pb2.SamplingParams:
    """Return greedy sampling past end-of-sequence tokens."""
    return sampling_pb2.SamplingParams(
        max_tokens=max_tokens, temperature=0, **({"ignore_eos": True} | fields)
    )
