"""The highest rate at which enough requests meet the targets, for targets of several tightnesses.

Source: Zhong et al. 2024 (DistServe), section 2.1 (goodput) and section 6 (SLO scales).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from loadtest.measures import Measures

SCALES = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)


@dataclass(frozen=True, slots=True)
class Probe:
    """One run of a sweep.

    Attributes:
        rate: requests a second.
        attainment: share of requests that met the targets, by scale.
        bounds: 95 % bounds of that share, by scale.
        measures: at scale 1.
    """

    rate: float
    attainment: dict[float, float]
    bounds: dict[float, tuple[float, float]]
    measures: Measures


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far and how finely to look.

    Attributes:
        start: first rate tried.
        least, most: nothing below or above is tried, requests/s.
        precision: stop when the lowest rate that failed is at most so much above the best, relative.
        share: of the requests that must meet the targets.
    """

    start: float = 1.0
    least: float = 0.05
    most: float = 1000.0
    precision: float = 0.05
    share: float = 0.9


async def sweep(
    probe: Callable[[float], Awaitable[Probe]], scales: Sequence[float], bounds: Bounds
) -> tuple[dict[float, float], list[Probe]]:
    """Find the goodput for each scale by bisection; a run at one rate tells about all scales.

    Takes for granted that a higher rate never meets more.

    Args:
        probe: runs a load at a rate.
    Returns:
        scale -> highest rate that met the share (0: none did); and every run made, by rate.
    """
    made: dict[float, Probe] = {}
    best: dict[float, float] = {}
    for scale in sorted(scales, key=lambda scale: abs(scale - 1.0)):
        while (rate := _next_rate(made, scale, bounds)) is not None:
            made[rate] = await probe(rate)
        best[scale] = _bracket(made, scale, bounds)[0]
    return dict(sorted(best.items())), [made[rate] for rate in sorted(made)]


def _bracket(made: dict[float, Probe], scale: float, bounds: Bounds) -> tuple[float, float | None]:
    """Return the best rate below the first that failed (0: none), and that first one (None: none)."""
    best = 0.0
    for rate in sorted(made):
        if made[rate].attainment[scale] < bounds.share:
            return best, rate
        best = rate
    return best, None


def _next_rate(made: dict[float, Probe], scale: float, bounds: Bounds) -> float | None:
    if not made:
        return bounds.start
    best, failed = _bracket(made, scale, bounds)
    if failed is None:
        return min(2 * best, bounds.most) if best < bounds.most else None
    if best == 0.0:
        return max(failed / 2, bounds.least) if failed > bounds.least else None
    if failed / best <= 1 + bounds.precision:
        return None
    return (best + failed) / 2
