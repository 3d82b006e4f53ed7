"""A worker follows the addresses that its gateways' names have."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest

from baton.v1 import registry_pb2, registry_pb2_grpc
from engine.kv.block_events import BlockJournal
from services.common.server import GrpcServer
from services.gateway.registry import Registry
from services.worker import registry as worker_registry
from services.worker.gateway_names import resolve
from services.worker.registry import RegistryClient
from tests.integration.workers.test_block_events import Gateway, info
from tests.support.workers import eventually


@contextlib.asynccontextmanager
async def gateway(port: int = 0) -> AsyncIterator[tuple[Gateway, str]]:
    service, server = Gateway(), GrpcServer("127.0.0.1", port)
    server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, service, "baton.v1.RegistryService")
    await server.start()
    try:
        yield service, server.address
    finally:
        await server.stop(0)


def workers(registry: Registry) -> list[str]:
    return [worker.info.worker_id for worker in registry]


async def test_every_address_of_a_name_is_a_gateway_and_new_ones_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_registry, "RESOLVE_S", 0.05)
    monkeypatch.setattr(worker_registry, "FIRST_RESOLVE_S", 0.05)
    addresses: list[str] | None = None

    async def look_up(name: str) -> list[str]:
        assert name == "gateways:50050"
        if addresses is None:
            raise OSError("name not known")
        return addresses

    client = RegistryClient(
        ["gateways:50050"],
        info("d"),
        registry_pb2.WorkerLoad,
        BlockJournal(1),
        lambda peers: None,
        resolver=look_up,
    )
    client.start()
    try:
        async with gateway() as (first, one), gateway() as (second, two):
            await asyncio.sleep(0.1)  # not known yet
            addresses = [one]
            await eventually(lambda: workers(first.registry) == ["d"])
            addresses = [one, two]
            await eventually(lambda: workers(second.registry) == ["d"])
            # One that drains loses its name first: it keeps its workers until it is gone.
            addresses = [two]
            beats = len(first.resets)
            await eventually(lambda: len(first.resets) > beats + 10)
            assert workers(first.registry) == ["d"]
            # The name server's own trouble changes nothing.
            addresses = None
            beats = len(second.resets)
            await eventually(lambda: len(second.resets) > beats + 5)
            client.drain()
            await eventually(lambda: all(worker.is_draining for worker in second.registry))
            addresses = [two]
        await eventually(lambda: list(client.addresses) == [two])  # the first is forgotten with its gateway
    finally:
        begun = time.monotonic()
        await client.stop()
        assert time.monotonic() - begun < 5


async def test_addresses_name_themselves_and_names_their_ipv4_addresses() -> None:
    assert await resolve("127.0.0.1:80") == ["127.0.0.1:80"]
    assert await resolve("[::1]:80") == ["[::1]:80"]
    assert await resolve("localhost:50050") == ["127.0.0.1:50050"]
    with pytest.raises(socket.gaierror):
        await resolve("no-such-host.invalid:1")
