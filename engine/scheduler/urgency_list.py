"""Requests in order of urgency: priority, then arrival."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from engine.request import Request


def urgency(request: Request) -> tuple[int, int]:
    """Sort key: smaller is more urgent. Unique, since arrival is."""
    return (request.priority, request.arrival)


class UrgencyList:
    """A sorted list. A preempted request takes its old place among the waiting, as its arrival stays."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __reversed__(self) -> Iterator[Request]:
        return reversed(self._requests)

    @property
    def head(self) -> Request:
        """The most urgent request."""
        return self._requests[0]

    def add(self, request: Request) -> None:
        """Insert in order."""
        insort(self._requests, request, key=urgency)

    def remove(self, request: Request) -> None:
        """Take out a request that is in the list."""
        index = bisect_left(self._requests, urgency(request), key=urgency)
        assert self._requests[index] is request, f"{request.request_id} is not in the list"
        del self._requests[index]
