"""A worker without a model: every running request gets one token a step, over the real protocol.

    python -m bench.gateway_parts.worker GATEWAY TOKENS_PER_S TIMES.json

Without a GATEWAY (an empty argument) it waits for whoever calls.
At its end it writes when each step was emitted, and at which step each stream had its first.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import uvloop

from baton.v1 import decode_pb2, decode_pb2_grpc, kv_pb2, prefill_pb2, prefill_pb2_grpc, registry_pb2
from baton.v1.registry_pb2_grpc import RegistryServiceStub
from baton.v1.sampling_pb2 import FinishReason
from services.common.channel import open_channel
from services.common.server import GrpcServer, StopSignals, print_ready
from tests.support.byte_tokenizer import NUM_SPECIAL, VOCAB_SIZE

INCARNATION = "bench"
TOKEN = NUM_SPECIAL + ord("a")


class Running:
    """A request that gets tokens."""

    def __init__(self, request_id: str, max_tokens: int, stream: int) -> None:
        self.request_id = request_id
        self.left = max_tokens - 1
        self.stream = stream


class Worker(decode_pb2_grpc.DecodeServiceServicer, prefill_pb2_grpc.PrefillServiceServicer):
    """Serves both services, for one gateway."""

    def __init__(self, tokens_per_s: float) -> None:
        self._period_s = 1 / tokens_per_s
        self._reserved: dict[str, Running] = {}
        self._running: list[Running] = []
        self._step = 0
        self.times: list[float] = []
        self.first_steps: dict[int, int] = {}

    async def Reserve(self, request: decode_pb2.ReserveRequest, context: Any) -> decode_pb2.ReserveResponse:  # noqa: N802
        stream = 256 * (request.token_ids[0] - NUM_SPECIAL) + request.token_ids[1] - NUM_SPECIAL
        running = Running(request.request_id, request.sampling.max_tokens, stream)
        self._reserved[request.transfer_id] = running
        peer = kv_pb2.KvPeer(worker_id="w", incarnation=INCARNATION)
        target = kv_pb2.KvTarget(
            reservation_id=request.request_id, transfer_id=request.transfer_id, epoch=1, peer=peer
        )
        return decode_pb2.ReserveResponse(target=target)

    async def Prefill(  # noqa: N802
        self, request: prefill_pb2.PrefillRequest, context: Any
    ) -> AsyncGenerator[prefill_pb2.PrefillResponse, None]:
        yield prefill_pb2.PrefillResponse(first_token=prefill_pb2.FirstToken(token_id=TOKEN))
        self._running.append(self._reserved.pop(request.target.transfer_id))
        yield prefill_pb2.PrefillResponse(handed_over=prefill_pb2.HandedOver(transport="none"))

    async def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._running = [running for running in self._running if running.request_id != request.request_id]
        return decode_pb2.DecodeServiceCancelResponse()

    async def StreamSteps(  # noqa: N802
        self, request: decode_pb2.StreamStepsRequest, context: Any
    ) -> AsyncGenerator[decode_pb2.StreamStepsResponse, None]:
        yield decode_pb2.StreamStepsResponse(incarnation=INCARNATION)
        due = time.monotonic()
        while True:
            due = max(due + self._period_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            if self._running:
                yield self._emit()

    def _emit(self) -> decode_pb2.StreamStepsResponse:
        message = decode_pb2.StreamStepsResponse(incarnation=INCARNATION, step=self._step)
        for running in self._running:
            self.first_steps.setdefault(running.stream, self._step)
            running.left -= 1
            message.events.add(
                request_id=running.request_id,
                token_ids=[TOKEN],
                finish_reason=FinishReason.FINISH_REASON_LENGTH if running.left == 0 else 0,
            )
        self._running = [running for running in self._running if running.left]
        self._step += 1
        self.times.append(time.monotonic())
        return message


async def main(gateway: str, tokens_per_s: float, out: Path) -> None:
    """Serve until SIGTERM."""
    signals = StopSignals()
    worker = Worker(tokens_per_s)
    server = GrpcServer("127.0.0.1", 0)
    server.add(decode_pb2_grpc.add_DecodeServiceServicer_to_server, worker, "baton.v1.DecodeService")
    server.add(prefill_pb2_grpc.add_PrefillServiceServicer_to_server, worker, "baton.v1.PrefillService")
    await server.start()
    info = registry_pb2.WorkerInfo(
        worker_id="w", incarnation=INCARNATION, role=registry_pb2.WORKER_ROLE_BOTH, address=server.address,
        model="bench", fingerprint="f", num_blocks=1 << 20, block_size=16, context_length=1 << 16,
        vocab_size=VOCAB_SIZE,
    )  # fmt: skip
    if not gateway:
        print_ready(address=server.address)
        await signals.first.wait()
    else:
        await _join(gateway, info, signals.first)
    out.write_text(json.dumps({"times": worker.times, "first_steps": worker.first_steps}))
    await server.stop(0)


async def _join(gateway: str, info: registry_pb2.WorkerInfo, stop: asyncio.Event) -> None:
    """Be a worker of the gateway's until `stop`."""
    async with open_channel(gateway) as channel:
        registry = RegistryServiceStub(channel)
        await registry.Register(registry_pb2.RegisterRequest(worker=info), wait_for_ready=True)
        print_ready(address=info.address)
        load = registry_pb2.WorkerLoad(free_blocks=info.num_blocks)
        beat = registry_pb2.BeatRequest(worker_id="w", incarnation=INCARNATION, load=load)
        while not stop.is_set():
            await registry.Beat(beat)
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])))
