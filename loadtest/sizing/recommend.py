"""How to split so many workers between prefill and decode, and whether to split them at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.measures import Targets
from loadtest.sizing.cluster import Cluster
from loadtest.sizing.load import denser, lengthen, mean_rate
from loadtest.sizing.profile import Profile
from loadtest.sizing.simulation import Simulated
from loadtest.traces import TraceRow

_ALL_SPLITS = 9  # workers up to which every split is tried
_AROUND = (0.6, 0.75, 0.88, 1.0, 1.14, 1.33, 1.65)
_STEP_DIVISORS = (1, 4)  # co-located workers with smaller steps have more even streams
_LEAST_STEP = 32
_PRECISION = 0.02
_MOST_ROWS = 4000
_TARGETS_LONG = 20
# Predictions are good to about this; a smaller gain may be none.
CLEAR_GAIN = 1.15


@dataclass(frozen=True, slots=True)
class Judged:
    """What one cluster does.

    Attributes:
        max_rate: highest rate at which enough requests meet the targets, requests/s; 0: none does.
        attainment: share that meets them at the load's own rate.
        at_load: the simulation at the load's own rate.
    """

    cluster: Cluster
    max_rate: float
    attainment: float
    at_load: Simulated


def recommend(
    rows: Sequence[TraceRow],
    profile: Profile,
    targets: Targets,
    num_workers: int,
    share: float = 0.9,
    on_judged: Callable[[Judged], None] = lambda judged: None,
) -> list[Judged]:
    """Return the clusters of `num_workers` that were tried, the one with the highest rate first."""
    tried = []
    for cluster in candidates(rows, profile, num_workers):
        judged = judge(rows, profile, targets, cluster, share)
        on_judged(judged)
        tried.append(judged)
    return sorted(tried, key=lambda one: (-one.max_rate, -one.attainment))


def gain(tried: Sequence[Judged]) -> float:
    """Return the highest rate of a split over that of co-located workers; inf: those meet no target.

    Args:
        tried: of `recommend`, with clusters of both sorts; one of them at least has a rate.
    """
    apart = max(one.max_rate for one in tried if not one.cluster.both)
    both = max(one.max_rate for one in tried if one.cluster.both)
    return apart / both if both else math.inf


def candidates(rows: Sequence[TraceRow], profile: Profile, num_workers: int) -> list[Cluster]:
    """Return splits, all or those around the ratio of the two kinds' work, and co-located workers."""
    apart = [Cluster(prefill, num_workers - prefill) for prefill in _prefills(rows, profile, num_workers)]
    sizes = {
        max(profile.max_step_tokens // divisor, min(_LEAST_STEP, profile.max_step_tokens))
        for divisor in _STEP_DIVISORS
    }
    return [*apart, *(Cluster(both=num_workers, step_tokens=size) for size in sorted(sizes, reverse=True))]


def _prefills(rows: Sequence[TraceRow], profile: Profile, num_workers: int) -> list[int]:
    """Return the numbers of prefill workers to try."""
    if num_workers <= _ALL_SPLITS:
        return list(range(1, num_workers))
    sample = rows[:: max(1, len(rows) // 2000)]
    prefill_s = sum(profile.prompt_s(row.input_tokens) for row in sample)
    # A row's share of a step when a batch is as large as the pool allows.
    mean_context = sum(row.input_tokens + row.output_tokens / 2 for row in sample) / len(sample)
    batch = max(1.0, 0.5 * profile.decode_tokens / mean_context)
    token_s = profile.decode_step_s / batch + profile.decode_row_s + profile.decode_context_s * mean_context
    decode_s = sum(row.output_tokens for row in sample) * token_s
    odds = prefill_s / max(decode_s, 1e-12)
    found = set()
    for factor in _AROUND:
        count = round(num_workers * odds * factor / (1 + odds * factor))
        found.add(min(max(count, 1), num_workers - 1))
    return sorted(found)


def judge(
    rows: Sequence[TraceRow], profile: Profile, targets: Targets, cluster: Cluster, share: float
) -> Judged:
    """Simulate one cluster at the load's own rate, and find its highest rate by bisection."""
    at_load = cluster.simulate(rows, profile)
    attainment = at_load.attainment(targets)

    def holds(factor: float) -> bool:
        # As long as the trace and as many first tokens may take, or many requests: what is over soon, holds.
        needed = factor * max(1.0, _TARGETS_LONG * targets.ttft_s * mean_rate(rows) / len(rows))
        copies = max(1, min(math.ceil(needed), _MOST_ROWS // len(rows)))
        load = denser(lengthen(rows, copies), factor)
        return cluster.simulate(load, profile).attainment(targets) >= share

    low, high = (1.0, 2.0) if attainment >= share else (0.0, 1.0)
    while low and holds(high) and high < 1e6:
        low, high = high, 2 * high
    if not low:
        low = 0.5
        while low > 1e-4 and not holds(low):
            low, high = low / 2, low
        if low <= 1e-4:
            return Judged(cluster, 0.0, attainment, at_load)
    while high / low > 1 + _PRECISION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return Judged(cluster, low * mean_rate(rows), attainment, at_load)
