"""Which requests a worker still holds something for; what drain waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Generic, TypeVar

State = TypeVar("State")


class InFlight(Generic[State]):
    """States by the engine's request id; lives on the event loop, but for `get` and `len`."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[State]:
        return iter(tuple(self._states.values()))

    def get(self, engine_id: str) -> State | None:
        """Return the state, or None if the request is gone; from any thread."""
        return self._states.get(engine_id)

    def add(self, engine_id: str, state: State) -> None:
        """Add a request."""
        self._states[engine_id] = state
        self._empty.clear()

    def remove(self, engine_id: str) -> None:
        """Forget a request; idempotent."""
        self._states.pop(engine_id, None)
        if not self._states:
            self._empty.set()

    async def empty(self) -> None:
        """Return when nothing is in flight."""
        await self._empty.wait()
