"""Prometheus metrics of a worker: the engine's counters, hand-offs, latencies, errors."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from baton.v1 import registry_pb2
from engine.stats import STEP_BUCKETS_S, EngineStats
from services.common.errors import BatonError

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

Direction = Literal["sent", "received"]

# Name, help, field of EngineStats.
_GAUGES = (
    ("baton_num_requests_running", "Requests in the batch.", "running"),
    ("baton_num_requests_waiting", "Requests in the engine's queue.", "waiting"),
    ("baton_num_requests_swapped", "Requests in host memory, for lack of blocks.", "swapped"),
    ("baton_num_requests_reserved", "Reservations whose KV is on its way.", "reserved"),
    ("baton_kv_blocks", "KV blocks of the pool.", "num_blocks"),
    ("baton_kv_blocks_used", "KV blocks that requests, reservations or transfers hold.", "used_blocks"),
    ("baton_pending_tokens", "Tokens whose KV is to be computed.", "pending_tokens"),
)
_COUNTERS = (
    ("baton_computed_tokens", "Tokens run through the model.", "computed_tokens"),
    ("baton_generation_tokens", "Tokens drawn.", "sampled_tokens"),
    ("baton_prefix_cache_queries", "Tokens looked up in the prefix cache.", "prefix_query_tokens"),
    ("baton_prefix_cache_hits", "Tokens found in the prefix cache.", "prefix_hit_tokens"),
    ("baton_num_preemptions", "Requests stopped for lack of blocks.", "preemptions"),
    ("baton_host_blocks_saved", "KV blocks copied to host memory.", "saved_blocks"),
    ("baton_host_blocks_loaded", "KV blocks copied back from host memory.", "loaded_blocks"),
    ("baton_engine_steps", "Steps of the engine.", "steps"),
)


class EngineCollector(Collector):
    """Reads the engine's counters at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield one family a counter."""
        stats = self._stats()
        for name, text, field in _GAUGES:
            yield GaugeMetricFamily(name, text, value=getattr(stats, field))
        for name, text, field in _COUNTERS:
            yield CounterMetricFamily(name, text, value=getattr(stats, field))
        steps = HistogramMetricFamily(
            "baton_step_seconds", "Time of a step; prefill: it ran a chunk of a prompt.", labels=["kind"]
        )
        bounds = [str(bound) for bound in STEP_BUCKETS_S] + ["+Inf"]
        for times in stats.step_times:
            buckets = list(zip(bounds, accumulate(map(float, times.counts)), strict=True))
            steps.add_metric([times.kind], buckets, times.sum_s)
        yield steps
        usage = stats.used_blocks / max(stats.num_blocks, 1)
        yield GaugeMetricFamily(
            "baton_kv_cache_usage_ratio", "Share of KV blocks in use, 0 to 1.", value=usage
        )

    def describe(self) -> list[Metric]:
        """Name nothing in advance: the engine need not be asked at registration."""
        return []


class WorkerMetrics:
    """Counters of one worker; safe to change from any thread.

    Attributes:
        registry: what the metrics endpoint serves.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.transferred_blocks = 0
        self.transferred_bytes = 0
        self.transports: set[str] = set()
        self._blocks = Counter(
            "baton_handoff_blocks",
            "KV blocks handed over.",
            ["direction", "transport"],
            registry=self.registry,
        )
        self._bytes = Counter(
            "baton_handoff_bytes", "Bytes handed over.", ["direction", "transport"], registry=self.registry
        )
        self._skipped = Counter(
            "baton_handoff_skipped_blocks",
            "KV blocks not sent, because the receiver's prefix cache held them.",
            registry=self.registry,
        )
        self._links = Counter(
            "baton_handoff_links",
            "Links opened to receivers; fallback: a better transport that fits did not open.",
            ["transport", "fallback"],
            registry=self.registry,
        )
        self._handoffs = Counter(
            "baton_handoffs", "Hand-offs by outcome.", ["outcome"], registry=self.registry
        )
        self._exposed_s = Histogram(
            "baton_handoff_exposed_seconds",
            "From the end of prefill compute until decode could run.",
            ["transport"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_s = self._histogram(
            "baton_request_queue_time_seconds", "From receipt until compute or reservation."
        )
        self.compute_s = self._histogram(
            "baton_request_prefill_time_seconds", "From the first chunk until the first token."
        )
        self._errors = Counter(
            "baton_errors", "Requests refused or ended early.", ["reason"], registry=self.registry
        )

    def add_engine(self, stats: Callable[[], EngineStats]) -> None:
        """Serve the engine's counters too."""
        self.registry.register(EngineCollector(stats))

    def count_error(self, error: BatonError) -> None:
        """Count one refused or failed request."""
        self._errors.labels(error.reason.name).inc()

    def observe_exposed(self, transport: str, exposed_s: float) -> None:
        """Note how long decode waited for one hand-off after prefill had computed."""
        self._exposed_s.labels(transport).observe(exposed_s)

    def count_link(self, transport: str, *, is_fallback: bool) -> None:
        """Count one link; a fallback shows among the transports of the worker's beats."""
        self._links.labels(transport, "yes" if is_fallback else "no").inc()
        if is_fallback:
            self.transports.add(f"{transport} (fallback)")

    def count_handoff(
        self, direction: Direction, transport: str, blocks: int, num_bytes: int, skipped: int = 0
    ) -> None:
        """Count one acknowledged hand-off, on the side that sends or on the one that receives."""
        self.transports.add(transport)
        self.transferred_blocks += blocks
        self.transferred_bytes += num_bytes
        self._blocks.labels(direction, transport).inc(blocks)
        self._bytes.labels(direction, transport).inc(num_bytes)
        self._skipped.inc(skipped)
        self._handoffs.labels("committed").inc()

    def count_failed_handoff(self, outcome: str) -> None:
        """Count one hand-off that ended without acknowledgement."""
        self._handoffs.labels(outcome).inc()

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self.registry)


class LoadReporter:
    """Makes the WorkerLoad of a beat.

    Args:
        produced: which counter of the engine is this worker's output: computed or sampled tokens.
    """

    WINDOW_S = 10.0

    def __init__(
        self, stats: Callable[[], EngineStats], metrics: WorkerMetrics, produced: Callable[[EngineStats], int]
    ) -> None:
        self._stats = stats
        self._metrics = metrics
        self._produced = produced
        self._samples: deque[tuple[float, int]] = deque()

    def __call__(self) -> registry_pb2.WorkerLoad:
        """Return the load now; the rate is that of the last 10 s, as seen by successive calls."""
        stats = self._stats()
        return registry_pb2.WorkerLoad(
            free_blocks=stats.free_blocks,
            used_blocks=stats.used_blocks,
            running=stats.running,
            waiting=stats.waiting,
            pending_tokens=stats.pending_tokens,
            tokens_per_s=self._rate(self._produced(stats)),
            prefix_hit_tokens=stats.prefix_hit_tokens,
            prefix_query_tokens=stats.prefix_query_tokens,
            transferred_blocks=self._metrics.transferred_blocks,
            transferred_bytes=self._metrics.transferred_bytes,
            preemptions=stats.preemptions,
            transports=sorted(self._metrics.transports),
        )

    def _rate(self, total: int) -> float:
        now = time.monotonic()
        self._samples.append((now, total))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self.WINDOW_S:
            self._samples.popleft()
        then, before = self._samples[0]
        return (total - before) / (now - then) if now > then else 0.0
