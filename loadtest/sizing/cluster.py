"""A cluster that is simulated: prefill and decode workers, or co-located ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadtest.errors import UsageError
from loadtest.sizing.colocated import simulate_colocated
from loadtest.sizing.profile import Profile
from loadtest.sizing.simulation import Simulated, simulate
from loadtest.traces import TraceRow


@dataclass(frozen=True, slots=True)
class Cluster:
    """Workers by kind: both of the first two, or only the third.

    Attributes:
        step_tokens: token budget of a co-located worker's step.
    """

    prefill: int = 0
    decode: int = 0
    both: int = 0
    step_tokens: int = 0

    @classmethod
    def parse(cls, text: str, profile: Profile) -> Cluster:
        """Return the cluster of "P:D", "Nb" or "Nb/TOKENS", with the profile's steps if none are named.

        Raises:
            UsageError: it is none, or one of no workers.
        """
        apart = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
        if apart:
            return cls(prefill=int(apart[1]), decode=int(apart[2]))
        both = re.fullmatch(r"([1-9]\d*)b(?:/([1-9]\d*))?", text)
        if both:
            return cls(both=int(both[1]), step_tokens=int(both[2] or profile.max_step_tokens))
        raise UsageError(f"predict: P:D, such as 2:3, or co-located workers, such as 5b or 5b/512: {text!r}")

    @property
    def workers(self) -> int:
        """Workers of all kinds."""
        return self.prefill + self.decode + self.both

    def __str__(self) -> str:
        """Return it for people."""
        if self.both:
            return f"{self.both} co-located, steps of {self.step_tokens}"
        return f"{self.prefill} prefill + {self.decode} decode"

    def simulate(self, rows: Sequence[TraceRow], profile: Profile) -> Simulated:
        """Run a load to its end."""
        if self.both:
            return simulate_colocated(rows, replace(profile, max_step_tokens=self.step_tokens), self.both)
        return simulate(rows, profile, self.prefill, self.decode)
