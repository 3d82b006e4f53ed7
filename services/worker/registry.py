"""Keeps a worker listed at every gateway.

connect -> Register -> Beat, Beat, ... (NOT_FOUND, or a lost connection: Register again)
drain   -> Beat(draining) at once
stop    -> Deregister
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Sequence

import grpc

from baton.v1 import kv_pb2, registry_pb2, registry_pb2_grpc
from engine.kv.block_events import BlockJournal
from services.common.channel import open_channel
from services.common.errors import BatonError, ErrorReason
from services.common.logs import log
from services.common.status import parse_status
from services.common.tls import Certificate
from services.worker.block_events import BlockReporter

RPC_TIMEOUT_S = 5.0
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
# While a cluster starts, each beat may bring a receiver: the first ones come faster.
FIRST_BEATS = 16
FIRST_BEATS_FASTER = 8

Load = Callable[[], registry_pb2.WorkerLoad]
Receivers = Callable[[Sequence[kv_pb2.KvPeer]], None]
Senders = Callable[[Sequence[str]], None]

_logger = logging.getLogger(__name__)


class RegistryClient:
    """Registers one worker with all its gateways and beats.

    Args:
        journal: of the worker's prefix cache.
        on_receivers: told, at registration and after each beat, of all receivers that any gateway lists.
        on_senders: told as often of the CURVE keys of all senders.
        certificate: what gateways are shown; None: connections are open.
    """

    def __init__(
        self,
        gateways: Sequence[str],
        info: registry_pb2.WorkerInfo,
        load: Load,
        journal: BlockJournal,
        on_receivers: Receivers,
        on_senders: Senders = lambda public_keys: None,
        certificate: Certificate | None = None,
    ) -> None:
        self._on_receivers = on_receivers
        self._on_senders = on_senders
        self._links = [
            _GatewayLink(address, info, load, BlockReporter(journal), self._merge, certificate)
            for address in gateways
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to register; returns at once."""
        self._tasks = [asyncio.create_task(link.run()) for link in self._links]

    def drain(self) -> None:
        """Tell every gateway, now, to send nothing new."""
        for link in self._links:
            link.drain()

    async def stop(self) -> None:
        """Leave every gateway; one that does not answer is left to notice by itself."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.leave() for link in self._links))

    def _merge(self) -> None:
        merged = {(peer.worker_id, peer.incarnation): peer for link in self._links for peer in link.receivers}
        self._on_receivers(list(merged.values()))
        self._on_senders(sorted({key for link in self._links for key in link.sender_keys}))


class _GatewayLink:
    """The worker's registration at one gateway."""

    def __init__(
        self,
        address: str,
        info: registry_pb2.WorkerInfo,
        load: Load,
        blocks: BlockReporter,
        on_told: Callable[[], None],
        certificate: Certificate | None,
    ) -> None:
        self._address = address
        self._info = info
        self._load = load
        self._blocks = blocks
        self._on_told = on_told
        self._draining = asyncio.Event()
        self._channel = open_channel(address, certificate, "gateway")
        self._stub = registry_pb2_grpc.RegistryServiceStub(self._channel)
        # What the gateway said last; kept while it is away, since peers outlive a gateway.
        self.receivers: Sequence[kv_pb2.KvPeer] = ()
        self.sender_keys: Sequence[str] = ()

    async def run(self) -> None:
        """Stay registered until cancelled."""
        backoff_s = FIRST_BACKOFF_S
        complained: ErrorReason | None = None
        while True:
            try:
                interval_s = await self._register()
                log(_logger, logging.INFO, "registered", gateway=self._address)
                backoff_s, complained = FIRST_BACKOFF_S, None
                await self._beat(interval_s)
            except grpc.aio.AioRpcError as rpc_error:
                error = parse_status(rpc_error)
                if error.reason is not complained:
                    self._complain(error)
                complained = error.reason
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def drain(self) -> None:
        """Say so with a beat at once."""
        self._draining.set()

    async def leave(self) -> None:
        """Deregister and close the connection."""
        request = registry_pb2.DeregisterRequest(
            worker_id=self._info.worker_id, incarnation=self._info.incarnation
        )
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._stub.Deregister(request, timeout=1.0)
        await self._channel.close()

    async def _register(self) -> float:
        request = registry_pb2.RegisterRequest(worker=self._info)
        response = await self._stub.Register(request, timeout=RPC_TIMEOUT_S)
        self._blocks.restart()
        self._take(response)
        return max(float(response.beat_interval_ms), 10.0) / 1000

    async def _beat(self, interval_s: float) -> None:
        """Beat until the gateway forgets us or goes away; raises the AioRpcError that says so."""
        for number in itertools.count():
            draining = self._draining.is_set()
            blocks, is_more = self._blocks.next()
            request = registry_pb2.BeatRequest(
                worker_id=self._info.worker_id,
                incarnation=self._info.incarnation,
                load=self._load(),
                draining=draining,
                blocks=blocks,
            )
            response = await self._stub.Beat(request, timeout=RPC_TIMEOUT_S)
            is_taken = self._blocks.acknowledge(response.blocks_seq)
            self._take(response)
            if is_more and is_taken:
                continue
            pause_s = interval_s / FIRST_BEATS_FASTER if number < FIRST_BEATS else interval_s
            if draining:
                await asyncio.sleep(interval_s)
            else:
                # Not wait_for: on Python 3.11 it loses a cancellation that comes just after the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._draining.wait()

    def _take(self, response: registry_pb2.RegisterResponse | registry_pb2.BeatResponse) -> None:
        self.receivers, self.sender_keys = response.receivers, response.sender_keys
        self._on_told()

    def _complain(self, error: BatonError) -> None:
        level = logging.ERROR if error.reason is ErrorReason.LAYOUT_MISMATCH else logging.WARNING
        log(
            _logger,
            level,
            "not registered; trying again",
            gateway=self._address,
            reason=error.reason.name,
            error=error.message,
        )
