"""From shares at some rates to goodput.

Source: Zhong et al. 2024 (DistServe), section 2.1: the highest rate at which enough requests meet targets.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Bound(enum.Enum):
    """What is known of a goodput."""

    AT = ""
    AT_LEAST = "≥ "
    BELOW = "< "


@dataclass(frozen=True, slots=True)
class Goodput:
    """A rate, requests/s and GPU, between two that were measured; or a bound, where all or none held."""

    rate: float
    bound: Bound

    def __str__(self) -> str:
        """Return it for people."""
        return f"{self.bound.value}{self.rate:.2f}"


def goodput(shares: Sequence[tuple[float, float]], wanted: float) -> Goodput | None:
    """Return the rate at which the share falls below `wanted`; linear between two measured rates.

    As a sweep does, it stops at the first rate that fails: a lucky one above it does not count.

    Args:
        shares: (rate, share of the requests that met the targets).
    Returns:
        None: nothing was measured.
    """
    before: tuple[float, float] | None = None
    for rate, share in sorted(shares):
        if share < wanted:
            if before is None:
                return Goodput(rate, Bound.BELOW)
            low, good = before
            return Goodput(low + (rate - low) * (good - wanted) / (good - share), Bound.AT)
        before = rate, share
    return None if before is None else Goodput(before[0], Bound.AT_LEAST)
