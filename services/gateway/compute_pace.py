"""How fast a worker computes prompts, as far as its answers tell."""

from __future__ import annotations

# What was not seen again fades by half over so many tokens.
_HALVED_BY_TOKENS = 32768
# Less is a prompt or a few: kernels or caches were cold, or few tokens took the least time of a step.
_PROVEN_BY_TOKENS = 2048


class ComputePace:
    """The best pace at which prompts were computed lately.

    The best, because every prompt's time has a part that its length does not change, and
    others may have shared it: a prompt shows only that the worker is at least so fast. For
    the same reason it fades by the token: many short prompts, or the few tokens that a
    cached prompt leaves to compute, do not say that the worker has become slow.

    Attributes:
        tokens_per_s: 0: no prompt was computed yet.
    """

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        self._tokens = 0

    @property
    def is_proven(self) -> bool:
        """Whether enough was computed to set the worker apart from others."""
        return self._tokens >= _PROVEN_BY_TOKENS

    def note(self, num_tokens: int, compute_s: float) -> None:
        """Take note of a prompt's tokens that were computed, and of how long that took."""
        if compute_s <= 0:
            return
        self._tokens += num_tokens
        faded = self.tokens_per_s * 0.5 ** (num_tokens / _HALVED_BY_TOKENS)
        self.tokens_per_s = max(num_tokens / compute_s, faded)
