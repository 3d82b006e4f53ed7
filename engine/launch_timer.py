"""When to launch the step behind the one that runs: as late as the device still never waits.

What arrives until then goes into that step. Launched at once, it would leave an arrival to wait for the
rest of the step that runs and for all of the one behind it; launched late, for the rest of one.

A step's end is foretold by the shortest of the last ones of its size, or of the next smaller size that has
run, less the time that the host needs for a launch. Until one has run, the next is launched at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_NUM_REMEMBERED = 8
_SLACK_S = 0.0003  # for steps that differ
_LOOK_S = 0.001  # a step that is over long before its time is noticed so soon


class LaunchTimer:
    """Follows the steps of one engine, of which at most two are under way. Times are time.monotonic's."""

    def __init__(self) -> None:
        # The last few: of the device by size; of the host, from when it was time to the end of the launch.
        self._run_s: dict[int, tuple[float, ...]] = {}
        self._host_s: tuple[float, ...] = ()
        self._begun_s = self._ended_s = 0.0
        self._over_s: float | None = None

    def begun(self) -> None:
        """Note that the host begins to make a step without a wait; after one, it began when it was time."""
        self._begun_s = time.monotonic()

    def launched(self) -> float:
        """Note that the step is on the device; returns the time."""
        now = time.monotonic()
        self._host_s = _remember(self._host_s, now - self._begun_s)
        return now

    def ended(self, num_tokens: int, launched_s: float, *, was_over: bool) -> None:
        """Note that the host knows the results of the oldest step under way.

        Args:
            was_over: the host came late, so the step took no longer than it seems.
        """
        now = time.monotonic() if self._over_s is None else self._over_s
        run_s = now - max(launched_s, self._ended_s)
        size = _size(num_tokens)
        known = self._run_s.get(size, ())
        if was_over and known:
            # Else a delay would be taken for a longer step, and the next launch would be later still.
            run_s = min(run_s, *known)
        self._run_s[size] = _remember(known, run_s)
        self._ended_s, self._over_s = now, None

    def dropped(self) -> None:
        """Note that the oldest step under way failed, and nothing of it runs."""
        self._ended_s, self._over_s = time.monotonic(), None

    def wait(self, num_tokens: int, launched_s: float, is_over: Callable[[], bool]) -> None:
        """Return when it is time to make the step behind the newest one.

        Args:
            num_tokens, launched_s, is_over: of the newest one.
        """
        now = time.monotonic()
        # From a time that had passed before, no delay of the host's is to be learnt.
        due_s = max(now, self._due_s(num_tokens, launched_s))
        try:
            while now < due_s:
                if is_over():
                    self._over_s = due_s = now
                    break
                time.sleep(min(due_s - now, _LOOK_S))
                now = time.monotonic()
        finally:
            self._begun_s = min(due_s, now)

    def _due_s(self, num_tokens: int, launched_s: float) -> float:
        """When to make it; a time that has passed: at once."""
        known = [size for size in self._run_s if size <= num_tokens]
        if not known:
            return 0.0
        # All but the slowest of the last launches took no longer.
        host_s = sorted(self._host_s)[-2:][0]
        return max(launched_s, self._ended_s) + min(self._run_s[max(known)]) - host_s - _SLACK_S


def _remember(figures: tuple[float, ...], figure: float) -> tuple[float, ...]:
    return (*figures[1 - _NUM_REMEMBERED :], figure)


def _size(num_tokens: int) -> int:
    """Round down to four binary digits: steps of one size run for about as long."""
    shift = max(0, num_tokens.bit_length() - 4)
    return num_tokens >> shift << shift
