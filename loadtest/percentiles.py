"""Percentiles with bounds that say how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVELS = (50, 90, 95, 99)
_Z = 1.96  # 95 %
_EXACT_BELOW = 2000
_RESAMPLES = 100
_MOST_RESAMPLED = 200_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Percentile:
    """One percentile.

    Attributes:
        level: 0 to 100.
        value: the order statistic at the rank ceil(level * n).
        low, high: 95 % confidence bounds; None: too few values to give one.
    """

    level: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Distribution:
    """A measure over many requests.

    Attributes:
        count: values; 0 makes all others 0.
        mean, max: in the values' unit.
        percentiles: at LEVELS.
    """

    count: int
    mean: float
    max: float
    percentiles: tuple[Percentile, ...]

    def at(self, level: float) -> Percentile:
        """Return one percentile of LEVELS; with no values it is 0."""
        found = [entry for entry in self.percentiles if entry.level == level]
        return found[0] if found else Percentile(level, 0.0, None, None)


def of_values(values: Sequence[float]) -> Distribution:
    """Return the distribution of independent values, one a request.

    The bounds are order statistics whose ranks hold the percentile with 95 % by the binomial
    distribution; they assume nothing about the values'.
    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    size = len(ordered)
    if not size:
        return Distribution(0, 0.0, 0.0, ())
    found = []
    for level in LEVELS:
        low, high = _ranks(size, level / 100)
        found.append(
            Percentile(
                level,
                float(ordered[_rank(size, level) - 1]),
                float(ordered[low - 1]) if low >= 1 else None,
                float(ordered[high - 1]) if high <= size else None,
            )
        )
    return Distribution(size, float(ordered.mean()), float(ordered[-1]), tuple(found))


def of_groups(groups: Sequence[Sequence[float]]) -> Distribution:
    """Return the distribution of values that come in groups, such as the gaps of each request.

    Values of one group are not independent, so whole groups are drawn again (bootstrap) for the bounds.
    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8.
    """
    values = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups] or [np.empty(0)])
    size = len(values)
    if not size:
        return Distribution(0, 0.0, 0.0, ())
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    bounds = _bootstrap(ordered, owners[order], len(groups))
    found = [
        Percentile(level, float(ordered[_rank(size, level) - 1]), *bounds[which])
        for which, level in enumerate(LEVELS)
    ]
    return Distribution(size, float(ordered.mean()), float(ordered[-1]), tuple(found))


def share_bounds(met: int, of: int) -> tuple[float, float]:
    """Return 95 % bounds of a share. Source: Wilson 1927, the score interval."""
    if not of:
        return 0.0, 1.0
    share, weight = met / of, _Z * _Z / of
    middle = (share + weight / 2) / (1 + weight)
    spread = _Z / (1 + weight) * math.sqrt(share * (1 - share) / of + weight / (4 * of))
    return max(0.0, middle - spread), min(1.0, middle + spread)


def _rank(size: int, level: float) -> int:
    return min(size, max(1, math.ceil(size * level / 100 - 1e-9)))


def _ranks(size: int, share: float) -> tuple[int, int]:
    """Return ranks (from 1) whose order statistics bound the quantile; 0 and size + 1 are out of reach."""
    if size > _EXACT_BELOW:
        spread = _Z * math.sqrt(size * share * (1 - share))
        return math.floor(size * share - spread), math.ceil(size * share + spread) + 1
    logs = [
        math.lgamma(size + 1)
        - math.lgamma(k + 1)
        - math.lgamma(size - k + 1)
        + k * math.log(share)
        + (size - k) * math.log1p(-share)
        for k in range(size + 1)
    ]
    below = np.cumsum(np.exp(logs))  # P(at most k values lie below the quantile)
    low = int(np.searchsorted(below, 0.025, side="right"))
    high = int(np.searchsorted(below, 0.975)) + 1
    return low, high


def _bootstrap(ordered: Floats, owners: npt.NDArray[np.int64], groups: int) -> list[tuple[float, float]]:
    step = max(1, math.ceil(len(ordered) / _MOST_RESAMPLED))
    ordered, owners = ordered[::step], owners[::step]
    random = np.random.default_rng(0)
    draws = np.empty((_RESAMPLES, len(LEVELS)))
    for which in range(_RESAMPLES):
        times = np.bincount(random.integers(0, groups, groups), minlength=groups)
        total = np.cumsum(times[owners])
        ranks = np.searchsorted(total, np.asarray(LEVELS) / 100 * total[-1])
        draws[which] = ordered[np.minimum(ranks, len(ordered) - 1)]
    low, high = np.percentile(draws, (2.5, 97.5), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
