"""What gateways are owed: the messages of their StreamSteps streams.

The engine's events never wait for a gateway. Messages wait in the gateway's outbox while its
stream is slow or gone: a stream that takes none for `slow_gateway_s` is cut, and a gateway
without a stream for `stream_grace_s` is lost, which ends its requests. So an outbox is bounded
by what its requests can say in that time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence

from baton.v1 import decode_pb2
from services.common.errors import BatonError, ErrorReason
from services.common.logs import log
from services.decode.config import LeaseConfig

_logger = logging.getLogger(__name__)


class Outbox:
    """Messages of one gateway, in order; lives on the event loop.

    Args:
        incarnation: the worker's.
        on_lost: the gateway had no stream for the grace period.
    """

    def __init__(self, incarnation: str, config: LeaseConfig, on_lost: Callable[[], None]) -> None:
        self._incarnation = incarnation
        self._config = config
        self._on_lost = on_lost
        self._waiting: deque[tuple[float, decode_pb2.StreamStepsResponse]] = deque()
        self._stream: object | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._grace = self._start_grace()

    def put(self, step: int, events: Sequence[decode_pb2.TokenEvent]) -> None:
        """Queue one message; never waits."""
        now = time.monotonic()
        message = decode_pb2.StreamStepsResponse(incarnation=self._incarnation, step=step, events=events)
        self._waiting.append((now, message))
        self._wake.set()
        if self._stream is not None and now - self._waiting[0][0] > self._config.slow_gateway_s:
            log(_logger, logging.WARNING, "stream cut: the gateway is too slow", waiting=len(self._waiting))
            self._detach()

    async def stream(self) -> AsyncGenerator[decode_pb2.StreamStepsResponse, None]:
        """Attach: give what waits, then what comes. A stream that is open already is ended.

        Raises:
            BatonError: CANCELLED: another stream took over, or this one was cut.
        """
        self._stream = me = object()
        self._wake.set()
        self._grace.cancel()
        try:
            yield decode_pb2.StreamStepsResponse(incarnation=self._incarnation)
            while True:
                # A cut stream comes back from its yield when the gateway reads again, if ever.
                if self._stream is not me:
                    raise BatonError(ErrorReason.CANCELLED, "the stream was cut, or another one took over")
                if self._waiting:
                    yield self._waiting.popleft()[1]
                elif self._closing:
                    return
                else:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            if self._stream is me:
                self._detach()

    def close(self) -> None:
        """End the stream after what waits was given."""
        self._closing = True
        self._grace.cancel()
        self._wake.set()

    def _detach(self) -> None:
        self._stream = None
        self._wake.set()
        self._grace = self._start_grace()

    def _start_grace(self) -> asyncio.TimerHandle:
        handle = asyncio.get_running_loop().call_later(self._config.stream_grace_s, self._on_lost)
        if self._closing:
            handle.cancel()
        return handle


class Outboxes:
    """The outboxes of all gateways.

    Args:
        on_lost: told the id of a gateway that was lost.
    """

    def __init__(self, incarnation: str, config: LeaseConfig, on_lost: Callable[[str], None]) -> None:
        self._incarnation = incarnation
        self._config = config
        self._on_lost = on_lost
        self._by_gateway: dict[str, Outbox] = {}

    def of(self, gateway_id: str) -> Outbox:
        """Return a gateway's outbox; a new one waits for a stream for the grace period."""
        outbox = self._by_gateway.get(gateway_id)
        if outbox is None:
            outbox = Outbox(self._incarnation, self._config, lambda: self._lose(gateway_id))
            self._by_gateway[gateway_id] = outbox
        return outbox

    def close(self) -> None:
        """End all streams after what waits was given."""
        for outbox in self._by_gateway.values():
            outbox.close()

    def _lose(self, gateway_id: str) -> None:
        del self._by_gateway[gateway_id]
        self._on_lost(gateway_id)
