"""What is measured: clusters, loads, rates, and how long that takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

GENERATORS_START_S = 2.0
CHECK_BLOCKS_S = 1.2
USUAL_DRAIN_S = 4.0


@dataclass(frozen=True, slots=True)
class Topology:
    """A cluster by its workers, each on a GPU of its own; its name is "1p1d" or "2b" and so on."""

    prefill: int
    decode: int
    both: int

    @classmethod
    def parse(cls, name: str) -> Topology:
        """Return the cluster of a name.

        Raises:
            ValueError: it is none, or such a cluster could not answer.
        """
        match = re.fullmatch(r"(?:(\d+)p)?(?:(\d+)d)?(?:(\d+)b)?", name)
        prefill, decode, both = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
        if not both and not (prefill and decode):
            raise ValueError(f"{name!r}: a cluster is 1p1d (prefill, decode), 2b (co-located), 1p1d1b, ...")
        return cls(prefill, decode, both)

    @property
    def gpus(self) -> int:
        """One a worker."""
        return self.prefill + self.decode + self.both

    @property
    def name(self) -> str:
        """Its short name."""
        parts = ((self.prefill, "p"), (self.decode, "d"), (self.both, "b"))
        return "".join(f"{count}{letter}" for count, letter in parts if count)

    @property
    def title(self) -> str:
        """Its name for people."""
        parts = ((self.prefill, "prefill"), (self.decode, "decode"), (self.both, "co-located"))
        return " + ".join(f"{count} {word}" for count, word in parts if count)


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of requests, sent at one rate after another.

    Attributes:
        name: in results.
        title: for people.
        rates: requests a second and GPU that may be measured.
        input, output: lengths, as in loadtest.lengths; unused with `lengths`.
        lengths: path of a trace that both are drawn from; empty: none.
        length_scale, max_input, max_output: of that trace.
        warmup_s: what is due before this is sent, but not measured.
        window_s: what is due in this time after the warm-up is measured.
        cooldown_s: what is due after that is sent, not measured: the last ones measured keep company.
        timeout_s: a request that takes longer is given up.
    """

    name: str
    title: str
    rates: tuple[float, ...]
    input: str = "fixed:128"
    output: str = "fixed:64"
    lengths: str = ""
    length_scale: float = 1.0
    max_input: int = 0
    max_output: int = 0
    warmup_s: float = 6.0
    window_s: float = 20.0
    cooldown_s: float = 5.0
    timeout_s: float = 30.0

    @property
    def send_s(self) -> float:
        """How long requests are sent."""
        return self.warmup_s + self.window_s + self.cooldown_s

    @property
    def usual_s(self) -> float:
        """How long one rate usually takes."""
        return GENERATORS_START_S + self.send_s + USUAL_DRAIN_S + CHECK_BLOCKS_S


@dataclass(frozen=True, slots=True)
class Step:
    """One rate of one load on one cluster."""

    topology: Topology
    load: Load
    rate: float

    @property
    def key(self) -> tuple[str, str, float]:
        """What tells it from others in results."""
        return self.topology.name, self.load.name, self.rate

    @property
    def total_rate(self) -> float:
        """Requests a second of the whole cluster."""
        return self.rate * self.topology.gpus


@dataclass(frozen=True, slots=True)
class Part:
    """One load on one cluster: what is searched for its goodput."""

    topology: Topology
    load: Load


def parts(topologies: Sequence[Topology], loads: Sequence[Load], only: Sequence[str] = ()) -> list[Part]:
    """Return what is to be measured, cluster by cluster.

    Args:
        only: names of clusters and loads; of either kind none named is all.
    Raises:
        ValueError: a name in `only` is neither a cluster's nor a load's.
    """
    names = {one.name for one in topologies}, {load.name for load in loads}
    if unknown := set(only) - names[0] - names[1]:
        raise ValueError(
            f"only: {', '.join(sorted(unknown))}: known are {', '.join(sorted(names[0] | names[1]))}"
        )
    wanted = [set(only) & known or known for known in names]
    return [
        Part(topology, load)
        for topology in topologies
        for load in loads
        if topology.name in wanted[0] and load.name in wanted[1]
    ]


def share_s(left_s: float, planned: Sequence[Part], at: int, start_s: float) -> float:
    """Return what part `at` may take of the time that is left: as much as each one after it.

    Args:
        left_s: until the end of the budget; the cluster of part `at` runs.
        start_s: of one cluster; those that are still to be started are taken off.
    """
    after = {part.topology for part in planned[at:]} - {planned[at].topology}
    return (left_s - len(after) * start_s) / (len(planned) - at)


def plan_lines(planned: Sequence[Part], start_s: float, budget_s: float) -> list[str]:
    """Return what will be done and how far the time goes, a line each part, for people.

    Args:
        start_s: of one cluster, its warm-up and its first answers.
    """
    lines = []
    clusters = dict.fromkeys(part.topology for part in planned)
    each_s = (budget_s - len(clusters) * start_s) / max(1, len(planned))
    for topology in clusters:
        lines.append(
            f"{topology.name}: {topology.title}, {topology.gpus} GPUs; start and warm-up {start_s:.0f} s"
        )
        for load in (part.load for part in planned if part.topology == topology):
            rungs = ", ".join(f"{rate:g}" for rate in sorted(load.rates))
            requests = sum(load.rates) / len(load.rates) * topology.gpus * load.window_s
            lines.append(
                f"  {load.name}: of {rungs} requests/s per GPU about {int(each_s / load.usual_s)}, "
                f"{load.warmup_s:g} + {load.window_s:g} + {load.cooldown_s:g} s each, {load.usual_s:.0f} s "
                f"in all; about {requests:.0f} measured requests each"
            )
    lines.append(f"together at most {budget_s:.0f} s")
    return lines
