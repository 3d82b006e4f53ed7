"""What waits for one attempt: events in order, one reader, and the deadline among them.

Several thousand tokens a second pass here, so nothing is made for each but its place in a
list: one timer serves the whole attempt, and a reader takes all that has come at once.
A reader that waits may have events handled where they come, without being woken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Event = TypeVar("Event")


class Mailbox(Generic[Event]):
    """Must be made, and used, in one event loop."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._reader: asyncio.Future[None] | None = None
        self._handle: Callable[[Event], bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_late = False

    def set_deadline(self, remaining_s: float) -> None:
        """End waiting, from so many seconds on; the first call counts."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(remaining_s, self._expire)

    def put(self, event: Event) -> None:
        """Add an event; never waits."""
        if self._handle is None or not self._handle(event):
            self._events.append(event)
            self.wake()

    async def take(self, handle: Callable[[Event], bool] | None = None) -> list[Event]:
        """Wait until there are events, and take them all; none, if somebody called `wake`.

        Args:
            handle: is given each event that comes while nothing waits before it; false: it is to wait.
        Raises:
            TimeoutError: the deadline passed first.
        """
        if not self._events and not self._is_late:
            self._reader = asyncio.get_running_loop().create_future()
            self._handle = handle
            try:
                await self._reader
            finally:
                self._handle = None
        if not self._events and self._is_late:
            raise TimeoutError
        return self.take_now()

    def take_now(self) -> list[Event]:
        """Take what is there; may be nothing."""
        events, self._events = self._events, []
        return events

    def wake(self) -> None:
        """Let the reader go on; from now on events wait for it."""
        self._handle = None
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def close(self) -> None:
        """Forget the deadline. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._is_late = True
        self.wake()
