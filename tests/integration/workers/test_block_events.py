"""What a gateway learns of its workers from registration and beats: cached blocks, receivers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from baton.v1 import kv_pb2, registry_pb2, registry_pb2_grpc
from engine.kv.block_events import BlockJournal
from services.common.server import GrpcServer
from services.gateway.prefix_index import PromptBlocks, leading_blocks
from services.gateway.registry import Registry, Worker
from services.worker.registry import RegistryClient
from tests.support.workers import (
    BLOCK_SIZE,
    Pair,
    decode_worker,
    engine_config,
    eventually,
    greedy,
    prefill_worker,
)


class Gateway(registry_pb2_grpc.RegistryServiceServicer):
    """The gateway's registry behind gRPC.

    Attributes:
        resets: of each beat, whether it told everything anew.
    """

    def __init__(self, beat_interval_ms: int = 20) -> None:
        self._beat_interval_ms = beat_interval_ms
        self.restart()
        self.resets: list[bool] = []

    def restart(self) -> None:
        self.registry = Registry("tiny", 60.0, time.monotonic)

    async def Register(self, request, context):  # noqa: N802
        worker = self.registry.register(request.worker)
        return registry_pb2.RegisterResponse(
            beat_interval_ms=self._beat_interval_ms, receivers=self.registry.receivers(worker)
        )

    async def Beat(self, request, context):  # noqa: N802
        self.resets.append(request.blocks.reset)
        return self.registry.beat(
            request.worker_id, request.incarnation, request.load, request.draining, request.blocks
        )

    async def Deregister(self, request, context):  # noqa: N802
        self.registry.deregister(request.worker_id, request.incarnation)
        return registry_pb2.DeregisterResponse()

    def known(self, worker_id: str, prompt: list[int], salt: str = "") -> int:
        """Return the leading blocks of a prompt that the gateway thinks a worker holds."""
        worker = next((one for one in self.registry if one.info.worker_id == worker_id), None)
        if worker is None:
            return 0
        (count,) = leading_blocks([worker.blocks], PromptBlocks(prompt, salt).hashes(BLOCK_SIZE))
        return count


@contextlib.asynccontextmanager
async def serve(gateway: Gateway) -> AsyncIterator[str]:
    server = GrpcServer("127.0.0.1", 0)
    server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, gateway, "baton.v1.RegistryService")
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop(0)


async def test_a_gateway_learns_what_both_workers_hold_and_what_they_lost(tiny_model: Path) -> None:
    gateway = Gateway()
    prompt = [7, 8, 9, 10] * 10  # 2 full blocks and a half
    async with (
        serve(gateway) as address,
        prefill_worker(engine_config(tiny_model, num_blocks=4), gateway=[address]) as prefill,
        decode_worker(engine_config(tiny_model), gateway=[address]) as decode,
        Pair(prefill, decode) as pair,
    ):
        await pair.generate(prompt, greedy(3), request_id="r")
        for worker in (prefill, decode):
            worker_id = worker.identity.worker_id
            await eventually(lambda worker_id=worker_id: gateway.known(worker_id, prompt) == 2)
            assert gateway.known(worker_id, prompt, "tenant") == 0
        # The pool of four is overwritten.
        await pair.generate([3, 4] * 28, greedy(3), request_id="s")
        await eventually(lambda: gateway.known(prefill.identity.worker_id, prompt) == 0)
        assert gateway.known(decode.identity.worker_id, prompt) == 2


async def test_a_reborn_gateway_is_told_everything(tiny_model: Path) -> None:
    gateway = Gateway()
    prompt = [7, 8, 9, 10] * 10
    async with (
        serve(gateway) as address,
        prefill_worker(engine_config(tiny_model), gateway=[address]) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        await pair.generate(prompt, greedy(3), request_id="r")
        await eventually(lambda: gateway.known(prefill.identity.worker_id, prompt) == 2)
        gateway.restart()
        await eventually(lambda: gateway.known(prefill.identity.worker_id, prompt) == 2)


def info(worker_id: str) -> registry_pb2.WorkerInfo:
    return registry_pb2.WorkerInfo(
        worker_id=worker_id,
        incarnation="1",
        role=registry_pb2.WORKER_ROLE_DECODE,
        address="127.0.0.1:1",
        model="tiny",
        fingerprint="f",
        num_blocks=1 << 16,
        block_size=BLOCK_SIZE,
        context_length=64,
        vocab_size=8,
        kv_peer=kv_pb2.KvPeer(worker_id=worker_id, incarnation="1"),
    )


async def test_what_does_not_fit_one_beat_follows_at_once() -> None:
    gateway = Gateway(beat_interval_ms=60_000)
    journal = BlockJournal(10)
    names = [index.to_bytes(16, "little") for index in range(20_000)]
    for name in names:
        journal.stored(name)
    async with serve(gateway) as address:
        client = RegistryClient([address], info("d"), registry_pb2.WorkerLoad, journal, lambda peers: None)
        client.start()

        def worker() -> Worker | None:
            return next(iter(gateway.registry), None)

        await eventually(lambda: (one := worker()) is not None and len(one.blocks) == len(names))
        assert gateway.resets == [True, False, False]
        await client.stop()


async def test_receivers_come_with_registration() -> None:
    gateway = Gateway(beat_interval_ms=60_000)
    gateway.registry.register(info("earlier"))
    heard: list[list[str]] = []
    later = info("later")
    later.role = registry_pb2.WORKER_ROLE_PREFILL
    async with serve(gateway) as address:
        client = RegistryClient(
            [address],
            later,
            registry_pb2.WorkerLoad,
            BlockJournal(1),
            lambda peers: heard.append([peer.worker_id for peer in peers]),
        )
        client.start()
        await eventually(lambda: bool(heard))
        assert heard[0] == ["earlier"]
        await client.stop()


@pytest.mark.parametrize("turns", range(6))
async def test_a_client_stops_at_any_moment_after_it_drains(turns: int) -> None:
    gateway = Gateway(beat_interval_ms=60_000)
    async with serve(gateway) as address:
        client = RegistryClient(
            [address], info("d"), registry_pb2.WorkerLoad, BlockJournal(1), lambda peers: None
        )
        client.start()
        await eventually(lambda: len(gateway.resets) == 1)
        await asyncio.sleep(0.02)
        client.drain()
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(client.stop(), 5)
