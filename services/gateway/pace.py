"""How fast requests move: what promises to clients are made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_KEPT_EXITS = 32
_MIN_EXITS = 4
_WEIGHT = 0.1
# Gaps come by the hundred a second under load: the mean is that of the last 50 or so, once there are some.
_MIN_GAPS = 16
_GAP_WEIGHT = 0.02
# A pause is counted as at most so many times the mean: many are needed to say that tokens come slower now.
_MAX_GROWTH = 4.0


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
        self._streams = 0
        self._gaps = 0
        self._gap_s = 0.0

    def on_queue_begins(self) -> None:
        """A request waits and none did before: earlier gaps between exits were no queue's."""
        self._exits.clear()

    def on_exit(self) -> None:
        """A request stopped waiting."""
        self._exits.append(self._clock())

    def on_stream_begins(self) -> None:
        """A request has its first token."""
        self._streams += 1

    def on_gap(self, gap_s: float) -> None:
        """A request has one more token, so many seconds after the one before."""
        self._gaps += 1
        if self._gaps > _MIN_GAPS and self._gap_s:
            gap_s = min(gap_s, _MAX_GROWTH * self._gap_s)
        self._gap_s += max(1 / self._gaps, _GAP_WEIGHT) * (gap_s - self._gap_s)

    def on_stream_ends(self) -> None:
        """A request that had a first token has ended."""
        self._streams -= 1
        if not self._streams:  # what was seen in a crowd says nothing of an empty machine
            self._gaps = 0

    def on_end(self, service_s: float, output_tokens: int) -> None:
        """A request that ran has ended."""
        self._service_s = _mean(self._service_s, service_s)
        self._output_tokens = _mean(self._output_tokens, output_tokens)

    def wait_s(self, ahead: int) -> float | None:
        """Return how long a request waits that has so many ahead of it, seconds."""
        rate = self._exits_per_s()
        return None if rate is None else (ahead + 1) / rate

    def stream_s(self, max_tokens: int) -> float:
        """Return how long an answer takes from its first token on, with those that are written now, seconds.

        0: nothing is being written, or not for long enough to tell.
        """
        if self._gaps < _MIN_GAPS:
            return 0.0
        return self._gap_s * min(max_tokens, self._output_tokens or max_tokens)

    def _exits_per_s(self) -> float | None:
        if len(self._exits) >= _MIN_EXITS:
            return (len(self._exits) - 1) / max(1e-3, self._clock() - self._exits[0])
        if self._max_running and self._service_s:
            return self._max_running / self._service_s
        return None


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
