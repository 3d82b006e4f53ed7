"""What one key, or all of them, may have at once and a minute."""

from __future__ import annotations

from collections.abc import Callable

from services.common.errors import BatonError, ErrorReason
from services.common.keys import Limits


class Bucket:
    """So many units a minute, at most a minute's worth at once.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._per_minute = 0
        self._level = 0.0
        self._filled = clock()

    def wait_s(self, units: int, per_minute: int) -> float:
        """Return how long until `units` may be taken, seconds; 0: now.

        More than a minute's worth passes when the bucket is full, and then weighs on later ones.
        """
        if not per_minute:
            return 0.0
        self._fill(per_minute)
        lacking = min(units, per_minute) - self._level
        return max(0.0, lacking * 60 / per_minute)

    def take(self, units: int) -> None:
        """Take units, or give back with a negative number."""
        self._level -= units

    def _fill(self, per_minute: int) -> None:
        now = self._clock()
        if per_minute != self._per_minute:  # the limit is new, or was changed
            self._level = self._level + per_minute - self._per_minute
            self._per_minute = per_minute
        gained = (now - self._filled) * per_minute / 60
        self._level = min(float(per_minute), self._level + gained)
        self._filled = now


class Quota:
    """What is in flight and was begun lately, of one key or of all.

    Args:
        whose: begins messages: "this key has".
        reason: told when too much is in flight.
    """

    def __init__(self, whose: str, reason: ErrorReason, clock: Callable[[], float]) -> None:
        self._whose = whose
        self._reason = reason
        self._requests = Bucket(clock)
        self._tokens = Bucket(clock)
        self.in_flight = 0
        self.tokens_in_flight = 0

    def check(self, limits: Limits, count: int, tokens: int) -> None:
        """Check that `count` more requests with `tokens` in all may begin.

        Raises:
            BatonError: QUEUE_FULL or RATE_LIMITED; names the limit, and says when to try again.
        """
        if limits.max_requests and self.in_flight + count > limits.max_requests:
            raise BatonError(
                self._reason,
                f"{self._whose} {self.in_flight} requests in flight; the limit is {limits.max_requests}",
            )
        if limits.max_tokens and self.tokens_in_flight + tokens > limits.max_tokens:
            raise BatonError(
                self._reason,
                f"{self._whose} {self.tokens_in_flight} tokens in flight and this needs {tokens} more; the "
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
        self.in_flight += 1
        self.tokens_in_flight += tokens
        self._requests.take(1)
        self._tokens.take(tokens)

    def give_back(self, tokens: int, used: int) -> None:
        """Count its end.

        Args:
            tokens: what it was counted with.
            used: what it came to.
        """
        self.in_flight -= 1
        self.tokens_in_flight -= tokens
        self._tokens.take(used - tokens)
