"""Which rate to measure next: the rungs of a ladder are tried by bisection, for all targets at once.

A point costs half a minute of several GPUs, and where the targets stop being met is not known before. So
the first rung tried is the middle one, and then the one that divides the widest gap between a rate that met a
pair of targets and one that did not. No rung is tried twice, and one that can say nothing new never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def next_rate(
    rungs: Sequence[float], shares: Mapping[float, Mapping[str, float]], targets: Sequence[str], wanted: float
) -> float | None:
    """Return the rung to measure next; None: the goodput of all targets lies between neighbours.

    Args:
        rungs: rates.
        shares: of what was measured: rate -> targets -> share of the requests that met them.
        targets: names of those that are asked for.
        wanted: share that must meet them.
    """
    widest: list[float] = []
    for name in targets:
        failed = [rate for rate, met in shares.items() if met[name] < wanted]
        high = min(failed, default=float("inf"))
        low = max((rate for rate in shares if rate < high), default=0.0)
        between = [rung for rung in sorted(rungs) if low < rung < high]
        # Of equal gaps the lower one: its requests end sooner.
        if len(between) > len(widest) or (between and len(between) == len(widest) and between < widest):
            widest = between
    return widest[len(widest) // 2] if widest else None
