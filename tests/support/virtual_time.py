"""An event loop whose clock jumps to the next timer: hours of waiting take no time and always go alike."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: tells how long it would have."""

    def __init__(self, skip: Callable[[float], None]) -> None:
        super().__init__()
        self._skip = skip

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready now."""
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "all tasks wait for each other"
            self._skip(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs coroutines that only wait for time and each other."""

    def __init__(self) -> None:
        super().__init__(_JumpingSelector(self._skip))
        self._now = 0.0

    def time(self) -> float:
        """Return the seconds since the loop was made."""
        return self._now

    def _skip(self, seconds: float) -> None:
        self._now += max(0.0, seconds)


def run_in_virtual_time(work: Coroutine[None, None, T]) -> T:
    """Run `work` to its end in a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
