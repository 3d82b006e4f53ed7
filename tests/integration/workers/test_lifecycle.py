"""Registration, drain, metrics, and the process itself."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.v1 import decode_pb2, decode_pb2_grpc, kv_pb2, registry_pb2, registry_pb2_grpc
from services.common.channel import open_channel
from services.common.errors import BatonError, ErrorReason
from services.common.server import GrpcServer
from services.common.status import parse_status
from tests.support.workers import (
    Pair,
    all_free,
    decode_worker,
    engine_config,
    eventually,
    greedy,
    prefill_worker,
)

PROMPT = [5] * 20


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """A gateway's registry that remembers what it was told and can forget."""

    def __init__(self) -> None:
        self.workers: dict[str, registry_pb2.WorkerInfo] = {}
        self.registrations: list[str] = []
        self.beats: list[registry_pb2.BeatRequest] = []
        self.left: list[str] = []
        self.receivers: list[kv_pb2.KvPeer] = []

    async def Register(self, request, context):  # noqa: N802
        self.workers[request.worker.worker_id] = request.worker
        self.registrations.append(request.worker.incarnation)
        return registry_pb2.RegisterResponse(beat_interval_ms=20)

    async def Beat(self, request, context):  # noqa: N802
        if request.worker_id not in self.workers:
            raise BatonError(ErrorReason.WORKER_NOT_FOUND, "register again")
        self.beats.append(request)
        return registry_pb2.BeatResponse(receivers=self.receivers)

    async def Deregister(self, request, context):  # noqa: N802
        self.left.append(request.incarnation)
        return registry_pb2.DeregisterResponse()


@contextlib.asynccontextmanager
async def gateway(port: int = 0) -> AsyncIterator[tuple[Registry, str]]:
    registry = Registry()
    server = GrpcServer("127.0.0.1", port)
    server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, registry, "baton.v1.RegistryService")
    await server.start()
    try:
        yield registry, server.address
    finally:
        await server.stop(0)


async def test_a_worker_registers_with_every_gateway_and_leaves(tiny_model: Path) -> None:
    async with gateway() as (one, address_one), gateway() as (two, address_two):
        async with decode_worker(engine_config(tiny_model), gateway=[address_one, address_two]) as decode:
            await eventually(lambda: len(one.beats) > 2 and len(two.beats) > 2)
            info = one.workers[decode.identity.worker_id]
            assert info.incarnation == decode.identity.incarnation
            assert info.role == registry_pb2.WORKER_ROLE_DECODE
            assert info.address == decode.server.address
            assert info.num_blocks == 64
            assert info.block_size == 16
            assert info.fingerprint == decode.host.fingerprint
            assert info.kv_peer.endpoint.startswith("tcp://127.0.0.1:")
            assert one.beats[-1].load.free_blocks == 64
        assert one.left == two.left == [info.incarnation]


async def test_a_forgotten_worker_registers_again(tiny_model: Path) -> None:
    async with (
        gateway() as (registry, address),
        decode_worker(engine_config(tiny_model), gateway=[address]),
    ):
        await eventually(lambda: bool(registry.beats))
        registry.workers.clear()
        await eventually(lambda: len(registry.registrations) == 2)


async def test_a_worker_outlives_its_gateway(tiny_model: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with gateway() as (registry, address):
            await stack.enter_async_context(decode_worker(engine_config(tiny_model), gateway=[address]))
            await eventually(lambda: bool(registry.beats))
        await asyncio.sleep(0.2)
        async with gateway(int(address.rpartition(":")[2])) as (reborn, _):
            await eventually(lambda: bool(reborn.beats), 10)


async def test_links_to_receivers_open_ahead_of_the_first_request(tiny_model: Path) -> None:
    async with (
        gateway() as (registry, address),
        decode_worker(engine_config(tiny_model)) as decode,
        prefill_worker(engine_config(tiny_model), gateway=[address]) as prefill,
    ):
        peer = decode.service.kv_peer()
        assert peer is not None
        misfit = kv_pb2.KvPeer()
        misfit.CopyFrom(peer)
        misfit.worker_id = "misfit"
        misfit.regions[0].fingerprint = "another"
        registry.receivers = [peer, misfit]
        sender = prefill.service._sender
        await eventually(lambda: list(sender._links) == [(peer.worker_id, peer.incarnation)])
        registry.receivers = []
        await eventually(lambda: not sender._links)


async def test_a_fallback_shows_in_status_and_metrics(tiny_model: Path) -> None:
    async with (
        gateway() as (registry, address),
        decode_worker(engine_config(tiny_model)) as decode,
        prefill_worker(engine_config(tiny_model), gateway=[address], metrics_port=0) as prefill,
    ):
        peer = decode.service.kv_peer()
        assert peer is not None
        unmappable = kv_pb2.KvPeer()
        unmappable.CopyFrom(peer)
        unmappable.regions[0].shm_name = "baton-gone-1-00000000"
        registry.receivers = [unmappable]
        await eventually(lambda: bool(prefill.service.load().transports))
        assert list(prefill.service.load().transports) == ["zmq_tcp (fallback)"]
        figures = await asyncio.to_thread(scrape, prefill.metrics_address)
        assert figures['baton_handoff_links_total{fallback="yes",transport="zmq_tcp"}'] == 1


async def test_drain_finishes_what_runs_and_refuses_what_is_new(tiny_model: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        registry, address = await stack.enter_async_context(gateway())
        prefill = await stack.enter_async_context(prefill_worker(engine_config(tiny_model)))
        workers = decode_worker(engine_config(tiny_model), gateway=[address])
        decode = await workers.__aenter__()
        pair = await stack.enter_async_context(Pair(prefill, decode))
        running = asyncio.create_task(pair.generate(PROMPT, greedy(300), request_id="r"))
        await eventually(lambda: len(pair.tokens.get("r", [])) > 3)
        stopping = asyncio.create_task(decode.stop(drain_s=30))
        await eventually(lambda: bool(registry.beats) and registry.beats[-1].draining)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await pair.reserve(PROMPT, greedy(3))
        assert parse_status(refused.value).reason is ErrorReason.DRAINING
        health = await pair_health(decode.server.address)
        assert health == health_pb2.HealthCheckResponse.NOT_SERVING
        tokens, _, _ = await running
        assert len(tokens) == 300
        await asyncio.wait_for(stopping, 10)
        assert registry.left == [decode.identity.incarnation]


async def test_a_drain_that_takes_too_long_tells_the_gateway(tiny_model: Path) -> None:
    async with prefill_worker(engine_config(tiny_model)) as prefill:
        workers = decode_worker(engine_config(tiny_model))
        decode = await workers.__aenter__()
        async with Pair(prefill, decode) as pair:
            await pair.reserve(PROMPT, greedy(3), request_id="r")
            await decode.stop(drain_s=0.1)
            await eventually(lambda: pair.failures.get("r") == "DRAINING")


async def test_a_draining_prefill_worker_refuses(tiny_model: Path) -> None:
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        prefill.service.drain()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await pair.start_prefill(PROMPT, greedy(1), None).read()
        assert parse_status(refused.value).reason is ErrorReason.DRAINING


async def test_an_engine_that_died_is_noticed(tiny_model: Path) -> None:
    async with decode_worker(engine_config(tiny_model)) as decode, Pair(None, decode) as pair:
        died = asyncio.create_task(decode.lost())
        await asyncio.sleep(0)
        assert not died.done()
        await pair.reserve(PROMPT, greedy(3), request_id="r")
        decode.host.engine.stop()
        assert await asyncio.wait_for(died, 5) == "the engine died"
        await eventually(lambda: pair.failures.get("r") == "WORKER_LOST")


async def pair_health(address: str) -> int:
    async with open_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        return int(answer.status)


async def test_metrics(tiny_model: Path) -> None:
    async with (
        prefill_worker(engine_config(tiny_model), metrics_port=0) as prefill,
        decode_worker(engine_config(tiny_model), metrics_port=0) as decode,
        Pair(prefill, decode) as pair,
    ):
        await pair.generate(PROMPT, greedy(5))
        with pytest.raises(grpc.aio.AioRpcError):
            await pair.reserve([], greedy(5))
        await all_free(prefill, decode)
        block_bytes = decode.host.regions[0].block_bytes
        sent = await asyncio.to_thread(scrape, prefill.metrics_address)
        assert sent['baton_handoff_blocks_total{direction="sent",transport="shared_memory"}'] == 2
        assert (
            sent['baton_handoff_bytes_total{direction="sent",transport="shared_memory"}'] == 2 * block_bytes
        )
        assert sent['baton_handoff_exposed_seconds_count{transport="shared_memory"}'] == 1
        assert sent["baton_computed_tokens_total"] == 20
        got = await asyncio.to_thread(scrape, decode.metrics_address)
        received = got['baton_handoff_bytes_total{direction="received",transport="shared_memory"}']
        assert received == 2 * block_bytes
        assert sent['baton_step_seconds_count{kind="prefill"}'] >= 1
        assert got['baton_step_seconds_count{kind="decode"}'] >= 4
        assert 0 < got['baton_step_seconds_sum{kind="decode"}'] < 60
        assert got["baton_kv_blocks"] == 64
        assert got["baton_kv_blocks_used"] == 0
        assert got["baton_generation_tokens_total"] == 4
        assert got['baton_errors_total{reason="INVALID_ARGUMENT"}'] == 1


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_the_process(tiny_model: Path, role: str) -> None:
    process = await start_process(role, "--model", str(tiny_model), "--model-name", "tiny", "--threads", "1")
    try:
        assert process.stdout is not None
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
        assert ready["event"] == "ready"
        assert await pair_health(ready["address"]) == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        _, stderr = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0, stderr.decode()
        for line in stderr.decode().splitlines():
            assert json.loads(line)["service"] == role
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_second_signal_does_not_wait_for_running_requests(tiny_model: Path) -> None:
    process = await start_process("decode", "--model", str(tiny_model), "--model-name", "tiny")
    try:
        assert process.stdout is not None
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
        async with open_channel(ready["address"]) as channel:
            request = decode_pb2.ReserveRequest(
                request_id="r", gateway_id="g", transfer_id="t", token_ids=PROMPT, num_prompt_tokens=20
            )
            await decode_pb2_grpc.DecodeServiceStub(channel).Reserve(request, timeout=10)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(process.wait(), 1)
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), 5) == 130
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_model_that_is_none_is_named(tmp_path: Path) -> None:
    process = await start_process("decode", "--model", str(tmp_path / "nothing"), "--model-name", "tiny")
    _, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    last = json.loads(stderr.decode().splitlines()[-1])
    assert last["message"] == "cannot start"
    assert str(tmp_path / "nothing") in last["error"]


async def start_process(role: str, *flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"services.{role}.main",
        *flags,
        "--kv-bytes",
        "1M",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
