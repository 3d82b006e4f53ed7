"""How many tokens a prompt or an answer has."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from loadtest.errors import UsageError

FORMS = "N or fixed:N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA[:MAX]"


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths, tokens; each draw is at least 1.

    Attributes:
        kind: "fixed", "uniform" or "lognormal".
        values: N; LOW and HIGH, both included; median, sigma of the logarithm, and most (inf: no limit).
    """

    kind: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Return the distribution that a text such as "lognormal:1020:0.8" names.

        Raises:
            UsageError: it names none.
        """
        kind, _, rest = text.partition(":")
        if kind.isdigit():
            kind, rest = "fixed", kind
        try:
            values = tuple(float(value) for value in rest.split(":"))
        except ValueError:
            values = ()
        if kind == "lognormal" and len(values) == 2:
            values = (*values, math.inf)
        right = {"fixed": 1, "uniform": 2, "lognormal": 3}.get(kind)
        if right != len(values) or values[0] < 1 or (kind == "uniform" and values[1] < values[0]):
            raise UsageError(f"length {text!r}: expected {FORMS}, at least 1 token")
        return cls(kind, values)

    def draw(self, random: np.random.Generator) -> int:
        """Return one length, tokens."""
        match self.kind:
            case "fixed":
                return int(self.values[0])
            case "uniform":
                return int(random.integers(int(self.values[0]), int(self.values[1]) + 1))
        median, sigma, most = self.values
        return max(1, round(min(most, median * math.exp(sigma * random.standard_normal()))))
