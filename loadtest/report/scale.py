"""Axes: from values to pixels, and where the ticks go."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear or logarithmic axis.

    Attributes:
        low, high: values at its ends.
        start, end: their pixels.
        is_log: logarithmic; low must be above 0.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; values beyond the ends stay at them."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values between the ends."""
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            parts = (1,) if last - first > 3 else (1, 2, 5)
            values = [part * 10.0**power for power in range(first, last + 1) for part in parts]
            return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(part * power for part in _STEPS if part * power >= rough * 0.999)
        count = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(math.ceil(self.low / step - 1e-9), count + 1)]


def linear(high: float, start: float, end: float) -> Scale:
    """Return an axis from 0 to a little above `high`."""
    return Scale(0.0, high * 1.05 if high > 0 else 1.0, start, end)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """Return an axis that holds `low` to `high`, at least half a decade."""
    low = max(low, 1e-9)
    high = max(high * 1.15, low * 3)
    return Scale(low / 1.15, high, start, end, is_log=True)


def number(value: float) -> str:
    """Return a value as a label."""
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
