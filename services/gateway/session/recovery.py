"""What one request remembers of failures, and how long it goes on trying."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from services.common.errors import BatonError, ErrorReason
from services.gateway.registry import Registry, Worker, WorkerKey

Picked = TypeVar("Picked")

# Trying again elsewhere would give the same answer.
FINAL_REASONS = frozenset(
    {
        ErrorReason.INVALID_ARGUMENT,
        ErrorReason.TOO_LARGE,
        ErrorReason.MODEL_NOT_FOUND,
        ErrorReason.UNAUTHENTICATED,
        ErrorReason.PERMISSION_DENIED,
        ErrorReason.DEADLINE_EXCEEDED,
        ErrorReason.LAYOUT_MISMATCH,
        ErrorReason.UNIMPLEMENTED,
    }
)
# Another worker may have room; if there is none, the client hears it.
FULL_REASONS = frozenset({ErrorReason.QUEUE_FULL, ErrorReason.OUT_OF_BLOCKS, ErrorReason.RATE_LIMITED})


class AttemptFailedError(Exception):
    """An attempt came to nothing, and another one may do better."""

    def __init__(self, cause: BatonError) -> None:
        super().__init__(cause.message)
        self.cause = cause


class Recovery:
    """Failures of one request.

    Attributes:
        avoid: workers that failed it.
        retries: times that something was done again.
    """

    def __init__(self, registry: Registry, max_in_a_row: int, wait_s: float, deadline: float) -> None:
        self._registry = registry
        self._max_in_a_row = max_in_a_row
        self._wait_s = wait_s
        self._deadline = deadline
        self._in_a_row = 0
        self.avoid: set[WorkerKey] = set()
        self.retries = 0

    def blame(self, worker: Worker, error: BatonError) -> None:
        """Remember that a worker failed; if its connection did, other requests avoid it as well."""
        self.avoid.add(worker.key)
        if error.reason is ErrorReason.DRAINING:
            worker.is_draining = True
        if error.reason is ErrorReason.WORKER_LOST:
            self._registry.suspect(worker)

    def count(self, error: BatonError) -> None:
        """Count a failure.

        Raises:
            BatonError: trying again is no use; or there were too many in a row: WORKER_LOST, or INTERNAL if
                the last worker was there and could not compute it.
        """
        if error.reason in FINAL_REASONS:
            raise error
        self.retries += 1
        self._in_a_row += 1
        if self._in_a_row > self._max_in_a_row:
            raise BatonError(
                ErrorReason.INTERNAL if error.reason is ErrorReason.INTERNAL else ErrorReason.WORKER_LOST,
                f"gave up after {self._in_a_row} failures in a row; last: {error.message}",
            ) from error

    def progress(self) -> None:
        """Note that a token came: the next failure is the first in a row."""
        self._in_a_row = 0

    def remaining_s(self) -> float:
        """Return the time until the deadline. BatonError: it has passed."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise deadline_error()
        return remaining

    async def pick(self, kind: str, pick: Callable[[], Picked | None]) -> Picked:
        """Pick a worker; a request that lost one waits for another to come.

        Raises:
            BatonError: NO_WORKER (WORKER_LOST if the request had one), DEADLINE_EXCEEDED.
        """
        picked = pick()
        if picked is not None:
            return picked
        if not self.retries:
            raise BatonError(ErrorReason.NO_WORKER, f"no {kind} worker is ready")
        wait_s = min(self._wait_s, self.remaining_s())
        try:
            async with asyncio.timeout(wait_s):
                while picked is None:
                    await self._registry.changed()
                    picked = pick()
        except TimeoutError:
            self.remaining_s()
            raise BatonError(
                ErrorReason.WORKER_LOST,
                f"the {kind} worker was lost, and no other came within {wait_s:.0f} s",
            ) from None
        return picked


def deadline_error() -> BatonError:
    """Return the error of a request whose time is up."""
    return BatonError(ErrorReason.DEADLINE_EXCEEDED, "the deadline passed before the answer was complete")
