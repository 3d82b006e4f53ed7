"""The way of events from other threads onto the event loop, and past it for what cannot wait."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LoopBridge(Generic[Item]):
    """A callback for any thread that calls each `handle(item, at)` on the event loop, in order.

    `at` is time.monotonic() at the moment of the event, so that the hop does not count as compute.
    Items that come while nothing handles them yet wait for the first handler; those after the loop
    closed are dropped.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._at_once: list[Callable[[Item, float], None]] = []
        self._handlers: list[Callable[[Item, float], None]] = []
        self._waiting: list[tuple[Item, float]] = []

    def __call__(self, item: Item) -> None:
        """Hand over one item: at once, then to the loop."""
        at = time.monotonic()
        self.at_once(item, at)
        self.post(item, at)

    def at_once(self, item: Item, at: float) -> None:
        """Hand over one item to those who cannot wait, alone."""
        for handle in self._at_once:
            handle(item, at)

    def post(self, item: Item, at: float) -> None:
        """Hand over one item to the loop alone; one wake-up."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, item, at)

    def attach_at_once(self, handle: Callable[[Item, float], None]) -> None:
        """Add one that is called on the thread of the event, before the loop hears of it.

        It must be quick and must not raise. Items from before it was added pass it by.
        """
        self._at_once.append(handle)

    def attach(self, handle: Callable[[Item, float], None]) -> None:
        """Add one that handles items; on the loop."""
        self._handlers.append(handle)
        for item, at in self._waiting:
            handle(item, at)
        self._waiting.clear()

    def _deliver(self, item: Item, at: float) -> None:
        if not self._handlers:
            self._waiting.append((item, at))
        for handle in self._handlers:
            handle(item, at)
