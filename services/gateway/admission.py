"""Who may come in, who waits, and who is told at once to come again.

    admit    limits of the key and of all; the queue's length, and whether the deadline can be met
    start    a place among the running ones, by urgency, then arrival
    run      a decode worker has reserved room: it waits no more
    release  the end, whatever it was

Beyond capacity a queue helps nobody: what waits too long misses its deadline after it
was paid for. So the queue is as long as what can still be met, and the rest is refused
while it can go elsewhere. What can be met is judged by how fast the queue moves, how long
prompts wait at the workers, and how far apart tokens come; all three are of the last
moments, so that a slow one is soon forgotten.

Ageing is in the order itself: one level of priority is worth `priority_step_s` seconds
of waiting, so that whoever waits long enough comes before any newcomer.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import time
from collections.abc import Callable, Sequence

from services.common.errors import BatonError, ErrorReason
from services.gateway.access import Caller
from services.gateway.config import LimitsConfig
from services.gateway.ledger import Ledger
from services.gateway.pace import Pace
from services.gateway.quota import Quota
from services.gateway.ticket import Demand, Ticket

_RETRY_S = 1.0
# Who is let in crowds those let in before, which no estimate made then could know. With less, a sudden
# load of three times the capacity lets in so many that most are late (tests/unit/gateway/test_overload.py).
_MARGIN = 1.5


class Admission:
    """Counts requests that wait and run.

    Args:
        expected_output_tokens: of a request that asks for more.
        clock: seconds, monotonic.
        ledger: where limits are counted; None: for this process alone.
        backlog_s: how long a prompt waits for the workers that compute prompts, seconds.
    Attributes:
        waiting: requests that hold no reservation yet.
        in_flight: all admitted requests, waiting ones included.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        expected_output_tokens: int = 256,
        clock: Callable[[], float] = time.monotonic,
        ledger: Ledger | None = None,
        backlog_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._limits = limits
        self._all_limits = limits.of_all
        self._expected_output_tokens = expected_output_tokens
        self.clock = clock
        self._backlog_s = backlog_s
        self.pace = Pace(limits.max_running, clock)
        self.ledger = ledger or Ledger()
        with self.ledger.locked():
            self._all = Quota(self.ledger.account(""), "the gateway has", ErrorReason.QUEUE_FULL, clock)
        self._by_key: dict[str, Quota] = {}
        self._queue: list[tuple[float, int, Ticket]] = []
        self._numbers = itertools.count()
        self.started = 0
        self.waiting = 0
        self.is_draining = False

    @property
    def in_flight(self) -> int:
        """All admitted requests of this process."""
        return self._all.in_flight

    def check_open(self) -> None:
        """Raise DRAINING if no request is admitted any more."""
        if self.is_draining:
            raise BatonError(ErrorReason.DRAINING, "the gateway is shutting down")

    def admit(self, demands: Sequence[Demand]) -> list[Ticket]:
        """Admit requests of one caller, all or none.

        Raises:
            BatonError: QUEUE_FULL, RATE_LIMITED (both name the limit and say when to try again) or
                DRAINING; nothing was admitted.
        """
        self.check_open()
        with self.ledger.locked():
            return self._admit(demands)

    def _admit(self, demands: Sequence[Demand]) -> list[Ticket]:
        caller = demands[0].caller
        tokens = [demand.num_prompt_tokens + self.expected_tokens(demand) for demand in demands]
        self._all.check(self._all_limits, len(demands), sum(tokens))
        if caller.key_id:
            quota = self._quota(caller)
            quota.check(caller.limits, len(demands), sum(tokens))
        if self.waiting + len(demands) > self._limits.max_queue:
            raise BatonError(
                ErrorReason.QUEUE_FULL,
                f"{self.waiting} requests are waiting; the limit is {self._limits.max_queue}",
                retry_after_s=self.pace.wait_s(0),
            )
        for demand in demands:
            self._check_wait(demand)
        if not self.waiting:
            self.pace.on_queue_begins()
        return [Ticket(self, demand, count) for demand, count in zip(demands, tokens, strict=True)]

    def expected_tokens(self, demand: Demand) -> int:
        """Return how long its answer is taken to become."""
        return min(demand.max_tokens, self._expected_output_tokens)

    def order(self, demand: Demand) -> float:
        """Return its place: smaller comes first."""
        return self.clock() + demand.priority * self._limits.priority_step_s

    def quotas(self, caller: Caller) -> list[Quota]:
        """Return what a request of this caller counts against."""
        return [self._all, self._quota(caller)] if caller.key_id else [self._all]

    async def enter(self, ticket: Ticket, deadline: float) -> None:
        """Wait for a place among the running ones.

        Raises:
            BatonError: QUEUE_FULL (it waited for max_queue_s), DEADLINE_EXCEEDED.
        """
        if self._has_place() and not self._queue:
            self._place(ticket)
            return
        entry = (self.order(ticket.demand), next(self._numbers), ticket)
        bisect.insort(self._queue, entry)
        limit_s = self._limits.max_queue_s or float("inf")
        left_s = deadline - self.clock()
        try:
            async with asyncio.timeout(min(limit_s, left_s)):
                await ticket.turn.wait()
        except TimeoutError:
            if left_s <= limit_s:
                raise BatonError(
                    ErrorReason.DEADLINE_EXCEEDED, "the deadline passed while the request waited"
                ) from None
            raise BatonError(
                ErrorReason.QUEUE_FULL,
                f"no room came within {limit_s:g} s",
                retry_after_s=self.pace.wait_s(len(self._queue)),
            ) from None
        finally:
            if not ticket.turn.is_set():
                self._queue.remove(entry)

    def leave(self) -> None:
        """Give a place among the running ones to the next."""
        self.started -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        """Let in whoever there is room for."""
        while self._queue and self._has_place():
            self._place(self._queue.pop(0)[2])

    def _place(self, ticket: Ticket) -> None:
        self.started += 1
        ticket.has_place = True
        ticket.turn.set()

    def _has_place(self) -> bool:
        return not self._limits.max_running or self.started < self._limits.max_running

    def _check_wait(self, demand: Demand) -> None:
        """Refuse what would wait longer than it may, or could not be answered in time.

        Who comes alone is always let in: what is known is of a crowd that is gone.
        """
        if not self.in_flight:
            return
        wait_s = self._queue_s(demand) + self._backlog_s()
        limit_s = self._limits.max_queue_s or float("inf")
        stream_s = self.pace.stream_s(self.expected_tokens(demand))
        spare_s = (demand.deadline - self.clock()) / _MARGIN - stream_s
        if wait_s <= min(limit_s, spare_s):
            return
        allowed = f"{limit_s:g} s are allowed"
        if spare_s < limit_s:
            allowed = f"its answer takes {stream_s:.1f} s, so its deadline cannot be met"
        raise BatonError(
            ErrorReason.QUEUE_FULL,
            f"{self.waiting} requests are waiting and this one would for {wait_s:.1f} s; {allowed}",
            retry_after_s=max(_RETRY_S, wait_s - max(0.0, min(limit_s, spare_s))),
        )

    def _queue_s(self, demand: Demand) -> float:
        """Return how long a request would wait here and for a reservation, seconds."""
        if self._has_place() and not self.waiting:
            return 0.0
        order = self.order(demand)
        behind = len(self._queue) - bisect.bisect_right(self._queue, order, key=lambda entry: entry[0])
        return self.pace.wait_s(self.waiting - behind) or 0.0

    def _quota(self, caller: Caller) -> Quota:
        quota = self._by_key.get(caller.key_id)
        if quota is None:
            account = self.ledger.account(caller.key_id)
            quota = Quota(account, "this key has", ErrorReason.RATE_LIMITED, self.clock)
            self._by_key[caller.key_id] = quota
        return quota
