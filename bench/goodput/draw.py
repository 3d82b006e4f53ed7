"""Which draw of a load is sent: one whose window has about the load that its rate says.

A window of some hundred requests, drawn at random, has 5 to 8 % more or fewer requests and tokens than its
rate says: as much as two clusters may differ by. So of several draws the one that comes closest is sent; what
happens within the window stays random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadtest.plan import Plan
from loadtest.scenario import Scenario

_DRAWS = 24


def even_seed(scenario: Callable[[int], Scenario], begin_s: float, end_s: float, first: int) -> int:
    """Return the seed from `first` on whose draw is nearest to the mean of the load.

    Args:
        scenario: of a seed; an open loop by rate.
        begin_s, end_s: the window.
    """
    seeds = range(first, first + _DRAWS)
    found = [_contents(scenario(seed), begin_s, end_s) for seed in seeds]
    wanted = scenario(first).rate * (end_s - begin_s)
    count, tokens_in, tokens_out = (max(1, sum(column)) for column in zip(*found, strict=True))
    means = (wanted, wanted * tokens_in / count, wanted * tokens_out / count)
    return min(zip(seeds, found, strict=True), key=lambda pair: _distance(pair[1], means))[0]


def _contents(scenario: Scenario, begin_s: float, end_s: float) -> tuple[int, int, int]:
    """Return what is due in the window: requests, tokens of prompts, tokens of answers."""
    plan = Plan(scenario)
    requests = [plan.request(index) for index in range(plan.size or 0)]
    due = [one for one in requests if one.at_s is not None and begin_s <= one.at_s < end_s]
    return len(due), sum(one.input_tokens for one in due), sum(one.output_tokens for one in due)


def _distance(contents: Sequence[int], means: Sequence[float]) -> float:
    return max(abs(value / mean - 1) for value, mean in zip(contents, means, strict=True))
