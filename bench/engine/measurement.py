"""What one run of a workload gave."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.engine.workloads import Workload


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run.

    Attributes:
        seconds: from the first request until the last token.
        ttft_s: each request's time until its first token.
        gaps_s: time between tokens of one request, over all watched requests.
    """

    seconds: float
    ttft_s: tuple[float, ...]
    gaps_s: tuple[float, ...]

    def summary(self, workload: Workload) -> dict[str, float]:
        """Return the figures of the JSON file."""
        median, late = percentile(self.gaps_s, 50), percentile(self.gaps_s, 99)
        return {
            "figure": workload.figure(self.seconds, late / median if median else 1.0),
            "seconds": self.seconds,
            "ttft_p50_s": percentile(self.ttft_s, 50),
            "ttft_p99_s": percentile(self.ttft_s, 99),
            "itl_p50_s": median,
            "itl_p99_s": late,
        }


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile; 0 of nothing."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@dataclass(slots=True)
class Watch:
    """Notes when each token of a run came. Used by one thread at a time.

    Attributes:
        wanted: tokens that each request owes.
    """

    wanted: dict[str, int]
    start: float = field(default_factory=time.perf_counter)
    left: int = field(init=False)
    _times: dict[str, list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.wanted)
        self._times = {name: [] for name in self.wanted}

    def token(self, name: str, now: float, count: int = 1) -> bool:
        """Note tokens; True: they were the last of the run."""
        times = self._times[name]
        times += [now] * count
        if len(times) == self.wanted[name]:
            self.left -= 1
        return self.left == 0

    def result(self, watched: Sequence[bool] | None = None) -> Measurement:
        """Return the run.

        Args:
            watched: whose gaps count, in the order of `wanted`; None: all.
        Raises:
            AssertionError: a request has more or fewer tokens than it asked for.
        """
        for name, times in self._times.items():
            assert len(times) == self.wanted[name], f"{name}: {len(times)} of {self.wanted[name]} tokens"
        return Measurement(
            seconds=max(times[-1] for times in self._times.values()) - self.start,
            ttft_s=tuple(times[0] - self.start for times in self._times.values()),
            gaps_s=tuple(
                b - a
                for times in itertools.compress(self._times.values(), watched or itertools.repeat(True))
                for a, b in itertools.pairwise(times)
            ),
        )
