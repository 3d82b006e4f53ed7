"""The running requests, and what they and the reservations will still need."""

from __future__ import annotations

from engine.request import Request
from engine.scheduler.urgency_list import UrgencyList


class Batch(UrgencyList):
    """Running requests in order of urgency.

    Attributes:
        num_reserved: granted reservations; each will need a place.
    """

    def __init__(self, max_running: int, max_spare: int) -> None:
        """Set the limits.

        Args:
            max_running: places, for running requests and reservations.
            max_spare: most blocks that admission leaves free for growth.
        """
        super().__init__()
        self.max_running = max_running
        self.num_reserved = 0
        self._max_spare = max_spare
        self._num_growing = 0

    def add(self, request: Request) -> None:
        """Insert in order."""
        super().add(request)
        self._num_growing += not request.hold_blocks

    def remove(self, request: Request) -> None:
        """Take out a request that is in the batch."""
        super().remove(request)
        self._num_growing -= not request.hold_blocks

    @property
    def num_places(self) -> int:
        """Requests that can still be taken."""
        return self.max_running - len(self) - self.num_reserved

    @property
    def num_spare(self) -> int:
        """Blocks that admission leaves free, for the growth of those that are here."""
        return min(self.num_reserved + self._num_growing, self._max_spare)

    def least_urgent(self) -> Request:
        """The one to be preempted first; held ones never are."""
        return next(request for request in reversed(self) if not request.hold_blocks)
