"""Spans by OpenTelemetry. Imported only where tracing is on: its packages are an optional extra."""

from __future__ import annotations

import time

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as OpenTelemetrySpan
from opentelemetry.trace import Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common.tracing import HEADER, Span, Value

_SEND_EVERY_MS = 1000
_FORMAT = TraceContextTextMapPropagator()


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Return what sends spans to a collector over gRPC; https:// in `endpoint` means TLS."""
    return OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))


class OtelTracing:
    """See tracing.Tracing.

    Args:
        exporter: gets the spans, in batches, on a thread of its own.
        share: see TracesConfig.trace_share.
        instance: which process of that service.
    """

    def __init__(self, service: str, exporter: SpanExporter, share: float = 1.0, instance: str = "") -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": f"baton-{service}", "service.instance.id": instance}),
            sampler=ParentBased(TraceIdRatioBased(share)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_SEND_EVERY_MS))
        self._tracer = self._provider.get_tracer("baton")

    def begin(self, name: str, traceparent: str, **attributes: Value) -> Span:
        """Begin the first span of this process."""
        parent = _FORMAT.extract({HEADER: traceparent})
        return _Span(self._tracer, self._tracer.start_span(name, context=parent, attributes=attributes))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class _Span:
    def __init__(self, tracer: Tracer, span: OpenTelemetrySpan) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span)
        carrier: dict[str, str] = {}
        _FORMAT.inject(carrier, context=self._context)
        self.traceparent = carrier.get(HEADER, "")

    def child(self, name: str, begin_s: float | None = None, **attributes: Value) -> Span:
        span = self._tracer.start_span(
            name, context=self._context, attributes=attributes, start_time=_unix_ns(begin_s)
        )
        return _Span(self._tracer, span)

    def set(self, **attributes: Value) -> None:
        self._span.set_attributes(attributes)

    def end(self, end_s: float | None = None, error: str = "") -> None:
        if not self._span.is_recording():
            return
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(_unix_ns(end_s))


def _unix_ns(monotonic_s: float | None) -> int | None:
    """Return the time of day of a time.monotonic()."""
    if monotonic_s is None:
        return None
    return time.time_ns() - round((time.monotonic() - monotonic_s) * 1e9)
