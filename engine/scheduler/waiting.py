"""The queue of requests that wait for blocks or a place in the batch."""

from __future__ import annotations

from engine.request import Request, RequestStatus
from engine.scheduler.urgency_list import UrgencyList


class WaitingQueue(UrgencyList):
    """Knows how many tokens wait to be computed here.

    Attributes:
        num_tokens: tokens of WAITING requests; those that want a reservation are computed elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_tokens = 0

    def add(self, request: Request) -> None:
        """Insert in order."""
        super().add(request)
        if request.status is RequestStatus.WAITING:
            self.num_tokens += len(request.token_ids)

    def remove(self, request: Request) -> None:
        """Take out a request that is in the queue."""
        super().remove(request)
        if request.status is RequestStatus.WAITING:
            self.num_tokens -= len(request.token_ids)
