"""When requests are due in an open loop: seconds from the start, whatever the server does."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from itertools import islice, takewhile

import numpy as np

_BATCH = 1024


class ArrivalProcess(enum.Enum):
    """How the gaps between arrivals are drawn; each has a mean of 1/rate."""

    POISSON = "poisson"
    GAMMA = "gamma"
    CONSTANT = "constant"


def arrival_times(
    process: ArrivalProcess,
    rate: float,
    *,
    seed: int,
    burstiness: float = 2.0,
    ramp_to: float | None = None,
    duration_s: float | None = None,
    num_requests: int | None = None,
) -> list[float]:
    """Return the times at which requests are due, in order, seconds.

    A ramp changes the rate linearly over `duration_s`: arrivals at rate 1 are mapped through the
    inverse of the cumulative rate, which keeps the process's burstiness at every rate.

    Args:
        rate: requests a second, > 0 (at the start, with a ramp >= 0).
        burstiness: coefficient of variation of the gaps (GAMMA only); 1 is Poisson.
        ramp_to: rate at the end of `duration_s`; None: no ramp.
        duration_s: nothing is due at or after this; None: no limit.
        num_requests: at most so many; None: no limit. One of the two limits must be given.
    """
    assert duration_s is not None or num_requests is not None
    gaps = _unit_gaps(process, burstiness, np.random.default_rng([seed, 1]))
    end = rate if ramp_to is None else ramp_to
    span = duration_s if ramp_to is not None else None
    times = (_invert(total, rate, end, span) for total in gaps)
    in_time = times if duration_s is None else takewhile(lambda at_s: at_s < duration_s, times)
    return list(islice(in_time, num_requests))


def _unit_gaps(process: ArrivalProcess, variation: float, random: np.random.Generator) -> Iterator[float]:
    """Give the running sum of gaps with mean 1; the first arrival is a gap from the start."""
    total = 0.0
    while True:
        match process:
            case ArrivalProcess.POISSON:
                gaps = random.exponential(1.0, _BATCH)
            case ArrivalProcess.GAMMA:
                shape = 1.0 / variation**2
                gaps = random.gamma(shape, 1.0 / shape, _BATCH)
            case ArrivalProcess.CONSTANT:
                gaps = np.ones(_BATCH)
        for gap in gaps.tolist():
            total += gap
            yield total


def _invert(total: float, rate: float, end: float, span: float | None) -> float:
    """Return t with: integral of the rate from 0 to t = total (inf when the ramp never gets there)."""
    if span is None or end == rate:
        return total / rate
    slope = (end - rate) / span
    under_root = rate * rate + 2 * slope * total
    return (np.sqrt(under_root) - rate) / slope if under_root >= 0 else np.inf
