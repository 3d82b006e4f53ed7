"""One call's measuring: cluster by cluster, load by load, rate by rate, as far as the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baton.errors import ClusterError
from bench.goodput.cluster import Measured, Serving, started
from bench.goodput.plan import Load, Part, Step, Topology, share_s
from bench.goodput.point import Point
from bench.goodput.results import Results
from bench.goodput.search import next_rate
from loadtest.measures import Targets

_HANG_S = 10.0  # past the budget: what takes longer is given up


@dataclass
class Session:
    """Measures what is planned; what goes wrong with a cluster ends its part, not the session.

    Attributes:
        planned: clusters and loads, in order.
        share: of the requests that must meet targets.
        start_s: expected time of a cluster's start and warm-up.
        end_s: of the budget, by time.monotonic.
        logs: folder of the processes' logs.
        on_point: called with each point that was added to the results.
        say: told what is going on.
        wrong: what must not be, in words.
    """

    serving: Serving
    planned: Sequence[Part]
    targets: Mapping[str, Targets]
    share: float
    results: Results
    start_s: float
    end_s: float
    logs: Path
    on_point: Callable[[], None]
    say: Callable[[str], None]
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Measure all of it, or what the time allows."""
        at = 0
        while at < len(self.planned):
            at = self._run_cluster(at)

    def _run_cluster(self, at: int) -> int:
        """Start the cluster of part `at`, and measure its parts; returns where to go on.

        If the cluster is lost in a part, its next one begins with a new cluster.
        """
        topology = self.planned[at].topology
        end = next(
            (i for i in range(at, len(self.planned)) if self.planned[i].topology != topology),
            len(self.planned),
        )
        if all(self._next_rate(part) is None for part in self.planned[at:end]):
            return end
        if self._left_s() < self.start_s + self.planned[at].load.usual_s:
            self.say(f"{topology.name}: left out, the time would not last")
            return end
        begun = time.monotonic()
        try:
            with started(self.serving, topology, self.logs) as cluster:
                self.say(f"{topology.title}: ready after {time.monotonic() - begun:.1f} s")
                measured = Measured(
                    self.serving,
                    topology,
                    cluster,
                    self.targets,
                    run=len(self.results.runs) - 1,
                    end_s=self.end_s + _HANG_S,
                )
                self._warm_up(measured, topology, [part.load for part in self.planned[at:end]])
                while at < end:
                    at += 1
                    self._measure(measured, at - 1)
        except ClusterError as error:
            self.wrong.append(f"{topology.name}: {error}")
            self.say(f"{topology.name}: lost; {str(error).splitlines()[0]}")
            # Lost before its first point: another start would end alike.
            return at if self._has_points(topology) else end
        return end

    def _warm_up(self, measured: Measured, topology: Topology, loads: Sequence[Load]) -> None:
        alone = measured.warm_up(loads)
        if alone.equal != alone.asked:
            self.wrong.append(
                f"{topology.name}: {alone.asked - alone.equal} of {alone.asked} prompts, asked alone "
                "twice, got two answers"
            )
        self.say(f"warm; {alone.equal} of {alone.asked} prompts asked alone got the same answer twice")

    def _measure(self, measured: Measured, at: int) -> None:
        """Search for the goodput of one part, in its share of the time that is left; one rate at least."""
        part = self.planned[at]
        share_end_s = time.monotonic() + share_s(self._left_s(), self.planned, at, self.start_s)
        part_end_s = self.end_s
        while (rate := self._next_rate(part)) is not None:
            if time.monotonic() + part.load.usual_s > part_end_s:
                self.say(f"{part.load.name}: {rate:g} and what comes after it are left out: no time")
                return
            point = measured.measure(Step(part.topology, part.load, rate))
            part_end_s = share_end_s
            self.results.add(point)
            self.on_point()
            self._tell(point)
            self.wrong += point.wrong(exact=self.serving.exact)
        self.say(f"{part.load.name}: every goodput lies between neighbouring rates")

    def _next_rate(self, part: Part) -> float | None:
        shares = {
            point.rate: {name: point.share(name) for name in self.targets}
            for point in self.results.of(part.topology.name, part.load.name)
        }
        return next_rate(part.load.rates, shares, list(self.targets), self.share)

    def _has_points(self, topology: Topology) -> bool:
        now = len(self.results.runs) - 1
        return any(
            point.run == now and point.topology == topology.name for point in self.results.points.values()
        )

    def _left_s(self) -> float:
        return self.end_s - time.monotonic()

    def _tell(self, point: Point) -> None:
        shares = ", ".join(f"{100 * point.share(name):.1f} % within {name}" for name in self.targets)
        self.say(
            f"{point.topology} {point.load} at {point.rate:g}: {shares}; "
            f"TTFT {point.pair('ttft', 0)}, TPOT {point.pair('tpot')}, "
            f"worst gap {point.pair('worst_gap')}, first gap {point.pair('first_gap')} ms; "
            f"{point.requests} requests, {point.failed} failed, "
            f"{point.refused} refused, {point.given_up} given up; "
            f"{point.agreement.equal} of {point.agreement.asked} answers as alone; {point.wall_s:.0f} s"
        )
        for text in point.warnings:
            self.say(f"  warning: {text}")
