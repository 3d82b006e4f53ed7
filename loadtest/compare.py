"""Two results side by side: what changed, and whether the change is more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loadtest.errors import UsageError

_RATES = (
    ("goodput", "requests/s", True),
    ("request_rate", "requests/s", True),
    ("output_rate", "tokens/s", True),
)
_LATENCIES = ("ttft", "itl", "tpot", "e2e", "worst_gap", "first_gap", "queue", "exposed")


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both results.

    Attributes:
        name, unit: of the figure.
        before, after: its values.
        is_better: whether `after` is on the better side.
        is_sure: whether the 95 % bounds of the two do not touch; None: there are none.
    """

    name: str
    unit: str
    before: float
    after: float
    is_better: bool
    is_sure: bool | None

    @property
    def ratio(self) -> float:
        """after / before - 1; 0 if before is 0."""
        return self.after / self.before - 1 if self.before else 0.0


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Return the figures that both results have.

    Args:
        before, after: of result.read_json.
    Raises:
        UsageError: one of them is no run (a sweep has no single figures).
    """
    if "measures" not in before or "measures" not in after:
        raise UsageError("compare: both must be results of `run`")
    one, two = before["measures"], after["measures"]
    changes = []
    for name, unit, more_is_better in _RATES:
        if one[name] is not None and two[name] is not None:
            is_better = (two[name] > one[name]) == more_is_better
            changes.append(Change(name.replace("_", " "), unit, one[name], two[name], is_better, None))
    for name in _LATENCIES:
        for old, new in zip(one[name]["percentiles"], two[name]["percentiles"], strict=False):
            title = f"{name.replace('_', ' ')} p{old['level']:g}"
            is_better = new["value"] < old["value"]
            changes.append(
                Change(title, "ms", 1000 * old["value"], 1000 * new["value"], is_better, _is_sure(old, new))
            )
    return changes


def differing_settings(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the settings of the two scenarios that differ: name, before, after."""
    one, two = before["scenario"], after["scenario"]
    names = sorted({*one, *two})
    return [
        (name, str(one.get(name)), str(two.get(name))) for name in names if one.get(name) != two.get(name)
    ]


def _is_sure(old: dict[str, Any], new: dict[str, Any]) -> bool | None:
    bounds = (old["low"], old["high"], new["low"], new["high"])
    if None in bounds:
        return None
    return bool(old["high"] < new["low"] or new["high"] < old["low"])
