"""Keeps the planned times: a thread that makes calls ready ahead and starts each when it is due.

A thread, because an event loop's timers round to a millisecond and wait for whatever the loop does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from loadtest.plan import Request
from loadtest.record import Call
from loadtest.targets import Wire

_AHEAD = 512
_LEAST_SLACK_S = 0.01

Ready = tuple[Call, Wire]


class Pacer:
    """Starts the requests of an open loop; `started` counts them.

    Args:
        requests: in order of time, each with `at_s`.
        prepare: makes one ready to be sent; called on the pacer's thread.
        start: called when one is due, on the pacer's thread.
        now: the run's clock, seconds.
    """

    def __init__(
        self,
        requests: Iterator[Request],
        prepare: Callable[[Request], Ready],
        start: Callable[[Ready], None],
        now: Callable[[], float],
    ) -> None:
        self._requests = requests
        self._prepare = prepare
        self._start = start
        self._now = now
        self._ready: deque[Ready] = deque()
        self._stopped = threading.Event()
        self.started = 0
        self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)

    def fill(self) -> None:
        """Make the first calls ready, before the clock starts."""
        while len(self._ready) < _AHEAD and self._prepare_next():
            pass

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Start nothing more."""
        self._stopped.set()

    @property
    def is_alive(self) -> bool:
        """Whether there is more to start."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while self._ready or self._prepare_next():
            due_s = self._ready[0][0].record.planned_s
            while due_s - self._now() > _LEAST_SLACK_S and len(self._ready) < _AHEAD and self._prepare_next():
                pass
            if self._stopped.wait(max(0.0, due_s - self._now())):
                return
            self.started += 1
            self._start(self._ready.popleft())

    def _prepare_next(self) -> bool:
        request = next(self._requests, None)
        if request is not None:
            self._ready.append(self._prepare(request))
        return request is not None
