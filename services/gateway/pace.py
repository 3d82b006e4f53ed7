"""How fast the queue moves, and how long a request takes: what promises to clients are made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_KEPT_EXITS = 32
_MIN_EXITS = 4
_WEIGHT = 0.1


class Pace:
    """Measures; estimates are None until there is something to make them from.

    Args:
        max_running: requests that run at once; 0: not limited.
        clock: seconds, monotonic.
    """

    def __init__(self, max_running: int, clock: Callable[[], float]) -> None:
        self._max_running = max_running
        self._clock = clock
        self._exits: deque[float] = deque(maxlen=_KEPT_EXITS)
        self._service_s: float | None = None
        self._output_tokens: float | None = None

    def on_queue_begins(self) -> None:
        """A request waits and none did before: earlier gaps between exits were no queue's."""
        self._exits.clear()

    def on_exit(self) -> None:
        """A request stopped waiting."""
        self._exits.append(self._clock())

    def on_end(self, service_s: float, output_tokens: int) -> None:
        """A request that ran has ended."""
        self._service_s = _mean(self._service_s, service_s)
        self._output_tokens = _mean(self._output_tokens, output_tokens)

    def wait_s(self, ahead: int) -> float | None:
        """Return how long a request waits that has so many ahead of it, seconds."""
        rate = self._exits_per_s()
        return None if rate is None else (ahead + 1) / rate

    def service_s(self, max_tokens: int) -> float | None:
        """Return how long a request runs once it has stopped waiting, seconds."""
        if self._service_s is None or self._output_tokens is None:
            return None
        return self._service_s * min(1.0, max_tokens / max(1.0, self._output_tokens))

    def _exits_per_s(self) -> float | None:
        if len(self._exits) >= _MIN_EXITS:
            return (len(self._exits) - 1) / max(1e-3, self._clock() - self._exits[0])
        if self._max_running and self._service_s:
            return self._max_running / self._service_s
        return None


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
