"""The way of events from other threads onto the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LoopBridge(Generic[Item]):
    """A callback for any thread that calls `handle(item, at)` on the event loop, in order.

    `at` is time.monotonic() at the moment of the event, so that the hop does not count as compute.
    Items that come while nothing handles them yet wait; those after the loop closed are dropped.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: Callable[[Item, float], None] | None = None
        self._waiting: list[tuple[Item, float]] = []

    def __call__(self, item: Item) -> None:
        """Hand over one item; one wake-up of the loop."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, item, time.monotonic())

    def attach(self, handle: Callable[[Item, float], None]) -> None:
        """Set who handles items; on the loop, once."""
        self._handle = handle
        for item, at in self._waiting:
            handle(item, at)
        self._waiting.clear()

    def _deliver(self, item: Item, at: float) -> None:
        if self._handle is None:
            self._waiting.append((item, at))
        else:
            self._handle(item, at)
