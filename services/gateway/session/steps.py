"""The stream of tokens from one decode worker, shared by all requests that run there."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

import grpc

from baton.v1.decode_pb2 import StreamStepsRequest, StreamStepsResponse, TokenEvent
from baton.v1.decode_pb2_grpc import DecodeServiceStub
from services.common.errors import BatonError, ErrorReason
from services.common.logs import log
from services.common.status import parse_status
from services.gateway.registry import Registry, Worker

_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 1.0

_logger = logging.getLogger(__name__)


class StepSink(Protocol):
    """One request's end of the stream."""

    def on_tokens(self, event: TokenEvent) -> None:
        """Take one step's share."""

    def on_broken(self, error: BatonError) -> None:
        """The stream broke: tokens may be missing, and nothing more will come."""


class StepStream:
    """Keeps StreamSteps of one worker incarnation open and hands out its events.

    A message may be lost with a connection, and nothing in a later one would show it.
    So a break ends every request on the stream, also if the worker is back at once:
    the session goes on from the tokens that it has, and none is lost or doubled.
    """

    def __init__(self, stub: DecodeServiceStub, gateway_id: str, worker: Worker, registry: Registry) -> None:
        self._stub = stub
        self._gateway_id = gateway_id
        self._worker = worker
        self._registry = registry
        self._worker_id, self._incarnation = worker.key
        self._sinks: dict[str, StepSink] = {}
        self._open = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"steps of {self._worker_id}")

    async def opened(self, timeout_s: float) -> None:
        """Wait until events would arrive. BatonError: WORKER_LOST: not in time."""
        if self._open.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._open.wait()
        except TimeoutError:
            raise BatonError(
                ErrorReason.WORKER_LOST, f"decode worker {self._worker_id!r} does not open its stream"
            ) from None

    def subscribe(self, request_id: str, sink: StepSink) -> None:
        """Hand the events of `request_id` to `sink` from now on."""
        self._sinks[request_id] = sink

    def unsubscribe(self, request_id: str) -> None:
        """Drop later events of `request_id`. Idempotent."""
        self._sinks.pop(request_id, None)

    def close(self, error: BatonError) -> None:
        """End the stream and tell its requests why."""
        self._task.cancel()
        self._break(error)

    async def closed(self) -> None:
        """Wait for the end that `close` brings."""
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                await self._read()
                error = BatonError(ErrorReason.WORKER_LOST, "the worker closed its stream")
            except grpc.aio.AioRpcError as status:
                error = parse_status(status)
            self._registry.suspect(self._worker)  # until the stream is open again, or a beat comes
            if self._open.is_set():
                backoff_s = _FIRST_BACKOFF_S
                log(
                    _logger,
                    logging.WARNING,
                    "stream broken",
                    worker=self._worker_id,
                    incarnation=self._incarnation,
                    requests=len(self._sinks),
                    error=error.message,
                )
            self._break(error)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _LAST_BACKOFF_S)

    async def _read(self) -> None:
        call = self._stub.StreamSteps(StreamStepsRequest(gateway_id=self._gateway_id))
        try:
            response: StreamStepsResponse
            async for response in call:
                if response.incarnation != self._incarnation:
                    # Asking again would take the stream from whoever lives at this address now.
                    self._registry.drop(self._worker, "another incarnation answers at its address")
                    return
                if not self._open.is_set():
                    self._open.set()
                    self._registry.trust(self._worker)
                for event in response.events:
                    sink = self._sinks.get(event.request_id)
                    if sink is not None:
                        sink.on_tokens(event)
        finally:
            call.cancel()

    def _break(self, error: BatonError) -> None:
        self._open.clear()
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.on_broken(error)
