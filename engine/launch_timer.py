"""When to launch the step behind the one that runs: as late as the device still never waits.

What arrives until then goes into that step. Launched at once, it would leave an arrival to wait for the
rest of the step that runs and for all of the one behind it; launched late, for the rest of one.

A step's end is foretold by the shortest of the last ones of its size, or of the next smaller size that has
run, less the time that the host needs for a launch. Until one has run, the next is launched at once.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

_NUM_REMEMBERED = 8
_SLACK_S = 0.0003  # for another thread to let go of the interpreter, and for steps that differ
_LOOK_S = 0.001  # how long the device waits at most if a step is over long before its time


class LaunchTimer:
    """Follows the steps of one engine; at most two are under way. Times are time.monotonic's."""

    def __init__(self) -> None:
        self._run_s: defaultdict[int, deque[float]] = defaultdict(_last_few)
        self._host_s = _last_few()
        self._under_way: deque[tuple[int, float]] = deque()
        self._begun_s = self._ended_s = 0.0

    def begun(self) -> None:
        """Note that the host begins to make a step."""
        self._begun_s = time.monotonic()

    def launched(self, num_tokens: int) -> None:
        """Note that it is on the device, and of so many tokens."""
        now = time.monotonic()
        self._host_s.append(now - self._begun_s)
        self._under_way.append((num_tokens, now))

    def ended(self) -> None:
        """Note that the host knows the results of the oldest step under way."""
        now = time.monotonic()
        num_tokens, launched_s = self._under_way.popleft()
        self._run_s[_size(num_tokens)].append(now - max(launched_s, self._ended_s))
        self._ended_s = now

    def dropped(self) -> None:
        """Note that the oldest step under way failed."""
        self._under_way.popleft()

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Return when it is time to make the step behind the newest one.

        Args:
            is_over: whether the device is done with the newest one.
        """
        due_s = self._due_s()
        while (left_s := due_s - time.monotonic()) > 0 and not is_over():
            time.sleep(min(left_s, _LOOK_S))

    def _due_s(self) -> float:
        """When to make it; a time that has passed: at once."""
        num_tokens, launched_s = self._under_way[-1]
        known = [size for size in self._run_s if size <= num_tokens]
        if not known:
            return 0.0
        run_s = min(self._run_s[max(known)])
        return max(launched_s, self._ended_s) + run_s - self._launch_s() - _SLACK_S

    def _launch_s(self) -> float:
        """How long a launch takes: all but the slowest of the last few took no longer."""
        return sorted(self._host_s)[-2:][0]


def _last_few() -> deque[float]:
    return deque(maxlen=_NUM_REMEMBERED)


def _size(num_tokens: int) -> int:
    """Round down to four binary digits: steps of one size run for about as long."""
    shift = max(0, num_tokens.bit_length() - 4)
    return num_tokens >> shift << shift
