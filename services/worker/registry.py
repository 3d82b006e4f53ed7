"""Keeps a worker listed at every gateway.

resolve -> a link for each address that a name has, again every few seconds; a link whose address
           is gone ends when its gateway does, so that one that drains can finish
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
from collections.abc import Awaitable, Callable, Collection, Sequence

import grpc

from baton.v1 import kv_pb2, registry_pb2, registry_pb2_grpc
from engine.kv.block_events import BlockJournal
from services.common.channel import open_channel
from services.common.errors import BatonError, ErrorReason
from services.common.logs import log
from services.common.status import parse_status
from services.common.tls import Certificate
from services.worker.block_events import BlockReporter
from services.worker.gateway_names import resolve

RPC_TIMEOUT_S = 5.0
RESOLVE_S = 5.0
FIRST_RESOLVE_S = 0.5
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
# While a cluster starts, each beat may bring a receiver: the first ones come faster.
FIRST_BEATS = 16
FIRST_BEATS_FASTER = 8

Resolve = Callable[[str], Awaitable[list[str]]]
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
        resolver: gives the addresses of a name.
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
        resolver: Resolve = resolve,
    ) -> None:
        self._names = gateways
        self._info = info
        self._load = load
        self._journal = journal
        self._certificate = certificate
        self._on_receivers = on_receivers
        self._on_senders = on_senders
        self._resolve = resolver
        self._links: dict[str, _GatewayLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._following: asyncio.Task[None] | None = None
        self._draining = False

    @property
    def addresses(self) -> Collection[str]:
        """Of the gateways that there is a link to."""
        return self._links.keys()

    def start(self) -> None:
        """Begin to register; returns at once."""
        self._following = asyncio.create_task(self._follow())

    def drain(self) -> None:
        """Tell every gateway, now, to send nothing new."""
        self._draining = True
        for link in self._links.values():
            link.drain()

    async def stop(self) -> None:
        """Leave every gateway; one that does not answer is left to notice by itself."""
        tasks = [*self._tasks.values(), *([self._following] if self._following else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(link.leave() for link in self._links.values()))

    async def _follow(self) -> None:
        """Look names up for ever."""
        known: dict[str, list[str]] = {name: [] for name in self._names}
        unknown: set[str] = set()
        while True:
            for name in self._names:
                try:
                    known[name] = await self._resolve(name)
                    unknown.discard(name)
                except OSError as error:  # what was known stays
                    if name not in unknown:
                        log(_logger, logging.WARNING, "name not known", gateway=name, error=str(error))
                    unknown.add(name)
            await self._update({address for addresses in known.values() for address in addresses})
            await asyncio.sleep(RESOLVE_S if all(known.values()) else FIRST_RESOLVE_S)

    async def _update(self, addresses: set[str]) -> None:
        for address, task in list(self._tasks.items()):
            self._links[address].is_named = address in addresses
            if task.done():
                del self._tasks[address]
                await self._links.pop(address).close()
                self._merge()
        for address in sorted(addresses - self._links.keys()):
            link = self._links[address] = _GatewayLink(
                address, self._info, self._load, BlockReporter(self._journal), self._merge, self._certificate
            )
            if self._draining:
                link.drain()
            self._tasks[address] = asyncio.create_task(link.run())

    def _merge(self) -> None:
        merged = {
            (peer.worker_id, peer.incarnation): peer
            for link in self._links.values()
            for peer in link.receivers
        }
        self._on_receivers(list(merged.values()))
        self._on_senders(sorted({key for link in self._links.values() for key in link.sender_keys}))


class _GatewayLink:
    """The worker's registration at one gateway.

    Attributes:
        is_named: its address is still among those of a gateway's name.
    """

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
        self.is_named = True
        self.receivers: Sequence[kv_pb2.KvPeer] = ()
        self.sender_keys: Sequence[str] = ()

    async def run(self) -> None:
        """Stay registered until cancelled, or until a gateway that has no name any more is gone."""
        backoff_s = FIRST_BACKOFF_S
        complained: ErrorReason | None = None
        while True:
            try:
                interval_s = await self._register()
                log(_logger, logging.INFO, "registered", gateway=self._address)
                backoff_s, complained = FIRST_BACKOFF_S, None
                await self._beat(interval_s)
            except grpc.aio.AioRpcError as rpc_error:
                if not self.is_named:
                    return
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
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
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
