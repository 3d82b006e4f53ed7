"""How many requests may be in the gateway: the rest are refused at once, with a hint when to try again.

A request waits until a decode worker has reserved room for it; then it runs.
"""

from __future__ import annotations

from services.common.errors import BatonError, ErrorReason


class Admission:
    """Counts requests that wait and run.

    Attributes:
        waiting: requests that hold no reservation yet.
        in_flight: all admitted requests, waiting ones included.
    """

    def __init__(self, max_in_flight: int, max_queue: int) -> None:
        self._max_in_flight = max_in_flight
        self._max_queue = max_queue
        self.waiting = 0
        self.in_flight = 0
        self.is_draining = False

    def check_open(self) -> None:
        """Raise DRAINING if no request is admitted any more."""
        if self.is_draining:
            raise BatonError(ErrorReason.DRAINING, "the gateway is shutting down")

    def admit(self, count: int = 1) -> list[Ticket]:
        """Admit `count` requests, all or none.

        Raises:
            BatonError: QUEUE_FULL (names the limit) or DRAINING; nothing was admitted.
        """
        self.check_open()
        if self._max_in_flight and self.in_flight + count > self._max_in_flight:
            raise BatonError(
                ErrorReason.QUEUE_FULL,
                f"{self.in_flight} requests in flight; the limit is {self._max_in_flight}",
            )
        if self.waiting + count > self._max_queue:
            raise BatonError(
                ErrorReason.QUEUE_FULL, f"{self.waiting} requests are waiting; the limit is {self._max_queue}"
            )
        return [Ticket(self) for _ in range(count)]


class Ticket:
    """One admitted request's place: waiting, then running, then given back."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._waits = self._counts = True
        admission.waiting += 1
        admission.in_flight += 1

    def run(self) -> None:
        """Stop waiting. Idempotent."""
        if self._waits:
            self._waits = False
            self._admission.waiting -= 1

    def release(self) -> None:
        """Give the place back. Idempotent."""
        self.run()
        if self._counts:
            self._counts = False
            self._admission.in_flight -= 1
