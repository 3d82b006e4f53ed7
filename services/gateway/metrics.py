"""Prometheus metrics of the gateway."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from services.gateway.admission import Admission
from services.gateway.registry import Registry

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 300)
_GAPS = (0.001, 0.002, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)


class GatewayMetrics:
    """Counters and histograms, on a registry of their own.

    Attributes:
        registry: that one.
    """

    def __init__(self, registry: Registry, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(registry, admission))

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"baton_{name}", text, registry=self.registry, buckets=buckets)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"baton_{name}", text, labels, registry=self.registry)

        self.ttft = histogram("time_to_first_token_seconds", "From receipt to the first token")
        self.itl = Gaps("baton_inter_token_latency_seconds", "Each gap between tokens of a stream", _GAPS)
        self.registry.register(self.itl)
        self.tpot = histogram("time_per_output_token_seconds", "(E2E - TTFT) / (N - 1) of a request", _GAPS)
        self.e2e = histogram("e2e_request_latency_seconds", "From receipt to the end")
        self.queue = histogram("request_queue_time_seconds", "From admission to the reservation")
        self.text = histogram("text_seconds", "Rendering and tokenizing of a prompt", _GAPS)
        self.requests = counter("requests", "Requests ended, by outcome", ("outcome",))
        self.errors = counter("errors", "Requests refused or failed, by reason", ("reason",))
        self.retries = counter("retries", "Times that a lost worker's part was done again")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted requests")
        self.cached_tokens = counter("cached_prompt_tokens", "Those that a prefix cache held")
        self.generation_tokens = counter("generation_tokens", "Tokens generated")

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)


class Gaps(Collector):
    """A histogram for what is counted with every token: by one thread, so without a lock."""

    def __init__(self, name: str, text: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """Return the histogram, its counts cumulative."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class _Gauges(Collector):
    """What is read at the moment of a scrape."""

    def __init__(self, registry: Registry, admission: Admission) -> None:
        self._workers = registry
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """Return requests waiting and running, and the workers by role."""
        admission = self._admission
        yield GaugeMetricFamily(
            "baton_num_requests_waiting", "Requests that wait for a reservation", admission.waiting
        )
        yield GaugeMetricFamily(
            "baton_num_requests_running", "Requests that hold one", admission.in_flight - admission.waiting
        )
        workers = GaugeMetricFamily(
            "baton_workers",
            "Workers listed, by what they do; a co-located one counts thrice",
            labels=("role",),
        )
        workers.add_metric(("prefill",), sum(worker.does_prefill for worker in self._workers))
        workers.add_metric(("decode",), sum(worker.does_decode for worker in self._workers))
        co_located = sum(worker.does_prefill and worker.does_decode for worker in self._workers)
        workers.add_metric(("both",), co_located)
        yield workers
