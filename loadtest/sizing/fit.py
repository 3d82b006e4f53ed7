"""Least squares with costs that cannot be negative."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def fit_costs(columns: Sequence[Sequence[float]], times_s: Sequence[float]) -> list[float]:
    """Return one cost a column, each at least 0, so that columns times costs come near the times.

    Every point counts by its relative error, since short steps matter as much as long ones.
    A column whose cost would be negative is left out (an active set; there are few columns).
    """
    matrix = np.array(columns, dtype=float).T
    wanted = np.array(times_s, dtype=float)
    weights = 1 / np.maximum(wanted, 1e-9)
    active = list(range(matrix.shape[1]))
    while active:
        part = matrix[:, active] * weights[:, None]
        found, *_ = np.linalg.lstsq(part, wanted * weights, rcond=None)
        if found.min() >= 0:
            costs = [0.0] * matrix.shape[1]
            for index, cost in zip(active, found, strict=True):
                costs[index] = float(cost)
            return costs
        active.pop(int(found.argmin()))
    return [0.0] * matrix.shape[1]
