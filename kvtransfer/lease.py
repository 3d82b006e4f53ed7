"""The sender's side of a lease."""

from __future__ import annotations

# The sender stops before the receiver takes the blocks back: it counts a shorter lease,
# and from when it sent what was answered, not from the answer.
SENDER_LEASE_SHARE = 0.8
RENEWALS_PER_LEASE = 5


class SenderLease:
    """When to renew, and until when the receiver surely keeps the blocks.

    Attributes:
        duration_s: what the receiver granted, seconds.
        deadline: on the sender's clock, seconds.
    """

    def __init__(self, duration_s: float, now: float) -> None:
        self.duration_s = duration_s
        self.deadline = now + SENDER_LEASE_SHARE * duration_s
        self._sequence = 0
        self._sent_at: dict[int, float] = {}
        self._next_renewal = now

    def is_due(self, now: float) -> bool:
        """Tell whether to renew."""
        return now >= self._next_renewal

    def renew(self, now: float) -> int:
        """Note that a renewal is being sent.

        Returns:
            Its number, which the answer echoes.
        """
        self._sequence += 1
        self._sent_at[self._sequence] = now
        self._next_renewal = now + self.duration_s / RENEWALS_PER_LEASE
        return self._sequence

    def answered(self, sequence: int) -> None:
        """Move the deadline; answers that are old, or to nothing, do not."""
        sent_at = self._sent_at.get(sequence)
        if sent_at is not None:
            self._sent_at = {number: at for number, at in self._sent_at.items() if number > sequence}
            self.deadline = max(self.deadline, sent_at + SENDER_LEASE_SHARE * self.duration_s)
