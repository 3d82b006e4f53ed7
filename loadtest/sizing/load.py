"""The load of a simulation: a trace, as it is, denser, or many of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from loadtest.traces import TraceRow


def denser(rows: Sequence[TraceRow], factor: float) -> list[TraceRow]:
    """Return the same requests in 1 / factor of the time."""
    return [replace(row, at_s=row.at_s / factor) for row in rows]


def lengthen(rows: Sequence[TraceRow], copies: int) -> list[TraceRow]:
    """Return a trace `copies` times over, one after the other; copies share no prefix."""
    begin_s = min(row.at_s for row in rows)
    # From the last request of one copy to the first of the next: a usual gap.
    span_s = (max(row.at_s for row in rows) - begin_s) * len(rows) / max(1, len(rows) - 1)
    names = _num_names(rows)
    return [
        replace(_apart(row, copy, names), at_s=row.at_s + copy * span_s)
        for copy in range(copies)
        for row in rows
    ]


def superpose(rows: Sequence[TraceRow], copies: int, seed: int = 1) -> list[TraceRow]:
    """Return `copies` of a trace at once, each turned by an offset of its own; copies share no prefix."""
    span_s = max(row.at_s for row in rows) or 1.0
    offsets = np.random.default_rng(seed).uniform(0, span_s, copies)
    offsets[0] = 0.0
    names = _num_names(rows)
    made = [
        replace(_apart(row, copy, names), at_s=float((row.at_s + offset) % span_s) if copy else row.at_s)
        for copy, offset in enumerate(offsets)
        for row in rows
    ]
    made.sort(key=lambda row: row.at_s)
    return made


def mean_rate(rows: Sequence[TraceRow]) -> float:
    """Return requests a second."""
    span_s = max(row.at_s for row in rows) - min(row.at_s for row in rows)
    return (len(rows) - 1) / span_s if span_s > 0 else float("inf")


def _num_names(rows: Sequence[TraceRow]) -> int:
    return 1 + max((name for row in rows for name in row.hash_ids), default=0)


def _apart(row: TraceRow, copy: int, names: int) -> TraceRow:
    """Give a copy's blocks names of their own."""
    return replace(row, hash_ids=tuple(name + copy * names for name in row.hash_ids))
