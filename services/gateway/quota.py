"""What one key, or all of them, may have at once and a minute."""

from __future__ import annotations

from collections.abc import Callable

from services.common.errors import BatonError, ErrorReason
from services.common.keys import Limits
from services.gateway.ledger import Account


class Bucket:
    """So many units a minute, at most a minute's worth at once.

    Args:
        cells: level, time of the last filling, units a minute; perhaps shared with other processes.
        clock: seconds, monotonic; the same in all processes.
    """

    def __init__(self, cells: memoryview[float], clock: Callable[[], float]) -> None:
        self._cells = cells
        self._clock = clock

    def wait_s(self, units: int, per_minute: int) -> float:
        """Return how long until `units` may be taken, seconds; 0: now.

        More than a minute's worth passes when the bucket is full, and then weighs on later ones.
        """
        if not per_minute:
            return 0.0
        self._fill(per_minute)
        lacking = min(units, per_minute) - self._cells[0]
        return max(0.0, lacking * 60 / per_minute)

    def take(self, units: int) -> None:
        """Take units, or give back with a negative number."""
        self._cells[0] -= units

    def _fill(self, per_minute: int) -> None:
        now = self._clock()
        level, filled, before = self._cells
        level += per_minute - before  # the limit is new, or was changed
        gained = max(0.0, now - filled) * per_minute / 60
        self._cells[0] = min(float(per_minute), level + gained)
        self._cells[1], self._cells[2] = now, per_minute


class Quota:
    """What is in flight and was begun lately, of one key or of all.

    All but `in_flight` is to be used under the ledger's lock.

    Args:
        account: where it is counted.
        whose: begins messages: "this key has".
        reason: told when too much is in flight.
    """

    def __init__(self, account: Account, whose: str, reason: ErrorReason, clock: Callable[[], float]) -> None:
        self._account = account
        self._whose = whose
        self._reason = reason
        self._requests = Bucket(account.bucket(0), clock)
        self._tokens = Bucket(account.bucket(1), clock)

    @property
    def in_flight(self) -> int:
        """Requests in flight in this process."""
        return self._account.own_requests

    def check(self, limits: Limits, count: int, tokens: int) -> None:
        """Check that `count` more requests with `tokens` in all may begin.

        Raises:
            BatonError: QUEUE_FULL or RATE_LIMITED; names the limit, and says when to try again.
        """
        in_flight, tokens_in_flight = self._account.requests, self._account.tokens
        if limits.max_requests and in_flight + count > limits.max_requests:
            raise BatonError(
                self._reason,
                f"{self._whose} {in_flight} requests in flight; the limit is {limits.max_requests}",
            )
        if limits.max_tokens and tokens_in_flight + tokens > limits.max_tokens:
            raise BatonError(
                self._reason,
                f"{self._whose} {tokens_in_flight} tokens in flight and this needs {tokens} more; the "
                f"limit is {limits.max_tokens}",
            )
        for bucket, units, limit, what in (
            (self._requests, count, limits.requests_per_minute, "requests"),
            (self._tokens, tokens, limits.tokens_per_minute, "tokens"),
        ):
            wait_s = bucket.wait_s(units, limit)
            if wait_s:
                raise BatonError(
                    ErrorReason.RATE_LIMITED,
                    f"{self._whose} used up its {limit} {what} a minute",
                    retry_after_s=wait_s,
                )

    def take(self, tokens: int) -> None:
        """Count a request that begins."""
        self._account.add(1, tokens)
        self._requests.take(1)
        self._tokens.take(tokens)

    def give_back(self, tokens: int, used: int) -> None:
        """Count its end.

        Args:
            tokens: what it was counted with.
            used: what it came to.
        """
        self._account.add(-1, -tokens)
        self._tokens.take(used - tokens)
