"""What the records of a run amount to.

TTFT, E2E: from the planned time (no coordinated omission), seconds. ITL: each gap between tokens.
TPOT: (last token - first token) / (N - 1) of a request. Requests that the client cancelled or read
slowly on purpose count as load and as outcomes, but not in latencies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest.percentiles import Distribution, of_groups, of_values, share_bounds
from loadtest.record import Outcome, Record


@dataclass(frozen=True, slots=True)
class Targets:
    """What a request must meet to count in goodput.

    Attributes:
        ttft_s, tpot_s: at most.
    """

    ttft_s: float
    tpot_s: float

    def scaled(self, factor: float) -> Targets:
        """Return targets that are tighter (factor < 1) or looser."""
        return Targets(self.ttft_s * factor, self.tpot_s * factor)

    def met_by(self, record: Record) -> bool:
        """Whether a request met both; one that failed did not, one token has no TPOT to miss."""
        if record.outcome is not Outcome.OK or record.ttft_s is None:
            return False
        return record.ttft_s <= self.ttft_s and (record.tpot_s or 0.0) <= self.tpot_s


@dataclass(frozen=True, slots=True)
class Measures:
    """Figures of a run. Latencies in seconds.

    Attributes:
        requests: planned after the warm-up.
        outcomes: "ok", "cancelled", "error" -> requests.
        errors: reason -> requests.
        span_s: from the end of the warm-up until the last answer ended.
        window_s: during which requests were planned.
        offered_rate: requests planned a second of the window.
        request_rate, output_rate, input_rate: completed requests, tokens generated, prompt tokens of
            answered requests, a second of the span.
        cached_share: of the prompt tokens, by the server's count; None: it does not say.
        ttft, itl, tpot, e2e, queue, exposed: distributions; the last two as the server reports them.
        worst_gap: of the longest gap of each request.
        first_gap: of the gap between its first token and what comes next; with prefill and decode apart,
            the hand-off and the wait for a step are in it.
        lag: from planned to sent: the generator's own.
        targets: of goodput; None: not asked.
        attainment: share of the requests (without cancelled and slow ones) that met the targets.
        attainment_bounds: 95 % bounds of that share.
        goodput: those, a second of the window.
        retries: hand-offs done again.
    """

    requests: int
    outcomes: dict[str, int]
    errors: dict[str, int]
    span_s: float
    window_s: float
    offered_rate: float
    request_rate: float
    output_rate: float
    input_rate: float
    cached_share: float | None
    ttft: Distribution
    itl: Distribution
    tpot: Distribution
    e2e: Distribution
    queue: Distribution
    exposed: Distribution
    worst_gap: Distribution
    first_gap: Distribution
    lag: Distribution
    targets: Targets | None
    attainment: float | None
    attainment_bounds: tuple[float, float] | None
    goodput: float | None
    retries: int


def measure(
    records: Sequence[Record],
    *,
    targets: Targets | None = None,
    warmup_s: float = 0.0,
    window_s: float | None = None,
) -> Measures:
    """Return the figures of a run.

    Args:
        window_s: how long requests were planned for, from the run's start; None: until the last planned.
    """
    counted = [record for record in records if record.planned_s >= warmup_s]
    fair = ordinary(counted)
    done = [record for record in fair if record.outcome is Outcome.OK]
    begun = [record for record in fair if record.token_s]
    span_s = max((record.end_s for record in counted), default=0.0) - warmup_s
    last_s = max((record.planned_s for record in counted), default=0.0) if window_s is None else window_s
    planned_s = max(last_s - warmup_s, 0.0)
    met = sum(targets.met_by(record) for record in fair) if targets else 0
    gaps = [gaps for record in begun if (gaps := record.gaps_s())]
    prompt = sum(record.prompt_tokens or 0 for record in counted if record.cached_tokens is not None)
    cached = sum(record.cached_tokens or 0 for record in counted)
    answered = [record for record in counted if record.token_s]
    return Measures(
        requests=len(counted),
        outcomes={outcome.value: _count(counted, outcome) for outcome in Outcome},
        errors=dict(
            Counter(record.reason for record in counted if record.outcome is Outcome.ERROR).most_common()
        ),
        span_s=span_s,
        window_s=planned_s,
        offered_rate=_rate(len(counted), planned_s),
        request_rate=_rate(_count(counted, Outcome.OK), span_s),
        output_rate=_rate(sum(record.tokens for record in counted), span_s),
        input_rate=_rate(sum(record.prompt_tokens or record.input_tokens for record in answered), span_s),
        cached_share=cached / prompt if prompt else None,
        ttft=of_values(_known(record.ttft_s for record in begun)),
        itl=of_groups(gaps),
        tpot=of_values(_known(record.tpot_s for record in done)),
        e2e=of_values([record.e2e_s for record in done]),
        queue=of_values(_known(record.queue_s for record in fair)),
        exposed=of_values(_known(record.exposed_s for record in fair)),
        worst_gap=of_values([max(part) for part in gaps]),
        first_gap=of_values([part[0] for part in gaps]),
        lag=of_values([record.sent_s - record.planned_s for record in counted]),
        targets=targets,
        attainment=met / len(fair) if targets and fair else None,
        attainment_bounds=share_bounds(met, len(fair)) if targets and fair else None,
        goodput=_rate(met, planned_s or span_s) if targets else None,
        retries=sum(record.retries for record in counted),
    )


def ordinary(records: Iterable[Record]) -> list[Record]:
    """Return the records whose latency is the server's doing: neither cancelled nor read slowly."""
    return [record for record in records if not record.slow and record.outcome is not Outcome.CANCELLED]


def _count(records: Sequence[Record], outcome: Outcome) -> int:
    return sum(record.outcome is outcome for record in records)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
