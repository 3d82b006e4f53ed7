"""One rate on one cluster: the figures, from the records of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from bench.goodput.answers import Agreement
from bench.goodput.plan import Step
from loadtest.measures import Measures, Targets, measure
from loadtest.percentiles import Distribution, share_bounds
from loadtest.record import Outcome, Record

REFUSALS = {"QUEUE_FULL", "OUT_OF_BLOCKS", "RATE_LIMITED"}
GIVEN_UP = {"TIMEOUT", "DEADLINE_EXCEEDED"}


@dataclass(frozen=True, slots=True)
class Point:
    """What one rate gave. Latencies in seconds, `rate` in requests a second and GPU.

    Attributes:
        run: which of the document's runs measured it.
        sent: requests, warm-up and cool-down included; the other counts are of the `requests` in the window.
        met: targets -> requests that met them.
        errors: reason -> requests; those refused and given up are among them.
        short: answers that had another number of tokens than was asked for.
        latencies: of ttft, tpot, itl, worst_gap, first_gap, queue and exposed: {"p50", "p99", "p99_low",
            "p99_high"}.
        cores: process -> CPU cores that it used.
        offered_rate, output_rate: requests planned, and tokens that came, a second of the window, in all.
        blocks_left: KV blocks held when all had ended.
    """

    run: int
    topology: str
    load: str
    rate: float
    gpus: int
    sent: int
    requests: int
    answered: int
    refused: int
    met: dict[str, int]
    errors: dict[str, int]
    short: int
    offered_rate: float
    output_rate: float
    latencies: dict[str, dict[str, float | None]]
    cores: dict[str, float]
    agreement: Agreement
    blocks_left: int
    wall_s: float
    warnings: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, float]:
        """As of plan.Step."""
        return self.topology, self.load, self.rate

    @property
    def given_up(self) -> int:
        """Requests that took longer than their timeout."""
        return _count(self.errors, GIVEN_UP)

    @property
    def failed(self) -> int:
        """Requests that failed otherwise: what no load excuses."""
        return sum(self.errors.values()) - self.refused - self.given_up

    def share(self, targets: str) -> float:
        """Return the share of the requests that met targets; failed and refused ones did not."""
        return self.met[targets] / self.requests if self.requests else 0.0

    def bounds(self, targets: str) -> tuple[float, float]:
        """Return 95 % bounds of that share."""
        return share_bounds(self.met[targets], self.requests)

    def ms(self, name: str, level: str) -> float:
        """Return a latency in milliseconds; 0 if there was none."""
        return 1000 * (self.latencies[name][level] or 0.0)

    def pair(self, name: str, digits: int = 1) -> str:
        """Return the median and the 99th percentile of a latency in milliseconds, for people."""
        # Results of an earlier version may not have it.
        if name not in self.latencies:
            return "–"
        return f"{self.ms(name, 'p50'):.{digits}f} / {self.ms(name, 'p99'):.{digits}f}"

    def wrong(self, *, exact: bool) -> list[str]:
        """Return what must not be, in words.

        Args:
            exact: answers must not depend on what else runs. Else the first tokens of three in four must
                agree: with random weights near-ties are common, and the batch decides those.
        """
        found = []
        if self.short:
            found.append(f"{self.short} answers had a wrong number of tokens")
        if self.failed:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.errors.items())
            found.append(f"{self.failed} requests failed ({reasons})")
        if self.blocks_left:
            found.append(f"{self.blocks_left} KV blocks were left")
        same, asked = (self.agreement.equal if exact else self.agreement.first), self.agreement.asked
        if same < (asked if exact else 0.75 * asked):
            what = "answers" if exact else "first tokens"
            found.append(f"{asked - same} of {asked} {what} differ from those given alone")
        return [f"{self.topology} {self.load} at {self.rate:g}: {text}" for text in found]

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Point:
        """Return what `asdict` gave."""
        known = dict(values)
        known["agreement"] = Agreement(**known["agreement"])  # type: ignore[arg-type]
        return cls(**known)  # type: ignore[arg-type]


def make_point(
    step: Step,
    records: Sequence[Record],
    targets: Mapping[str, Targets],
    *,
    run: int,
    cores: dict[str, float],
    agreement: Agreement,
    blocks_left: int,
    wall_s: float,
    warnings: list[str],
) -> Point:
    """Return the figures of the requests that were due in the load's window."""
    load = step.load
    end_s = load.warmup_s + load.window_s
    counted = [record for record in records if load.warmup_s <= record.planned_s < end_s]
    measures = measure(counted, warmup_s=load.warmup_s, window_s=end_s)
    errors = Counter(record.reason for record in counted if record.outcome is Outcome.ERROR)
    # Of all that were sent: a wrong answer counts, whenever it came.
    short = sum(record.outcome is Outcome.OK and record.tokens != record.output_tokens for record in records)
    return Point(
        run=run,
        topology=step.topology.name,
        load=load.name,
        rate=step.rate,
        gpus=step.topology.gpus,
        sent=len(records),
        requests=len(counted),
        answered=measures.outcomes["ok"],
        refused=_count(errors, REFUSALS),
        met={name: sum(map(aim.met_by, counted)) for name, aim in targets.items()},
        errors=dict(errors.most_common()),
        short=short,
        offered_rate=measures.offered_rate,
        output_rate=round(_tokens_between(records, load.warmup_s, end_s) / load.window_s, 1),
        latencies=_latencies(measures),
        cores=cores,
        agreement=agreement,
        blocks_left=blocks_left,
        wall_s=round(wall_s, 1),
        warnings=warnings,
    )


def _count(errors: Mapping[str, int], reasons: set[str]) -> int:
    return sum(count for reason, count in errors.items() if reason in reasons)


def _tokens_between(records: Sequence[Record], begin_s: float, end_s: float) -> int:
    return sum(
        count
        for record in records
        for at_s, count in zip(record.token_s, record.token_counts, strict=True)
        if begin_s <= at_s < end_s
    )


def _latencies(measures: Measures) -> dict[str, dict[str, float | None]]:
    names = ("ttft", "tpot", "itl", "worst_gap", "first_gap", "queue", "exposed")
    return {name: _quantiles(getattr(measures, name)) for name in names}


def _quantiles(found: Distribution) -> dict[str, float | None]:
    p99 = found.at(99)
    return {"p50": found.at(50).value, "p99": p99.value, "p99_low": p99.low, "p99_high": p99.high}


def point_json(point: Point) -> dict[str, object]:
    """Return it as JSON."""
    return asdict(point)
