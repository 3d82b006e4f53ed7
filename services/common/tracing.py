"""Traces of requests, as W3C Trace Context carries them; off until `setup_tracing`.

A span of this process is opened where a request comes in (the interceptor of gRPC, the gateway's HTTP),
and its children where the work is done. What crosses to another service is a `traceparent`: in the
metadata of an RPC. So one trace leads from the client through gateway, prefill, hand-off and decode.

Off, spans cost next to nothing, but a client's trace id still reaches every log line.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

HEADER = "traceparent"
Value = str | int | float | bool

# version 00: trace id, parent's span id, flags; all-zero ids are invalid.
_FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Span(Protocol):
    """Something that took time. Times are time.monotonic(); None: now."""

    @property
    def traceparent(self) -> str:
        """What to tell others, so that their spans become children; empty: nothing to tell."""

    def child(self, name: str, begin_s: float | None = None, **attributes: Value) -> Span:
        """Begin a part of it."""

    def set(self, **attributes: Value) -> None:
        """Note facts."""

    def end(self, end_s: float | None = None, error: str = "") -> None:
        """End it. Idempotent.

        Args:
            error: why it came to nothing; empty: it did not.
        """


class Tracing(Protocol):
    """Where spans go."""

    def begin(self, name: str, traceparent: str, **attributes: Value) -> Span:
        """Begin the first span of this process, a child of `traceparent`, or a new trace if that is empty."""

    def close(self) -> None:
        """Send what is left."""


class PassedOn:
    """A span that is not recorded: only the caller's `traceparent` goes on."""

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent

    def child(self, name: str, begin_s: float | None = None, **attributes: Value) -> Span:
        """Return this one."""
        return self

    def set(self, **attributes: Value) -> None:
        """Note nothing."""

    def end(self, end_s: float | None = None, error: str = "") -> None:
        """End nothing."""


class Off:
    """Records nothing."""

    def begin(self, name: str, traceparent: str, **attributes: Value) -> Span:
        """Return what only passes the caller's context on."""
        return PassedOn(traceparent)

    def close(self) -> None:
        """Nothing is left."""


@dataclass(frozen=True, slots=True)
class TracesConfig:
    """Whether and where spans go.

    Attributes:
        otlp_endpoint: OTLP gRPC address of an OpenTelemetry collector, "http://host:4317"; empty: none.
        trace_share: share of the traces that begin here which are recorded, 0 to 1; a caller's own flag
            decides about its traces.
    """

    otlp_endpoint: str = ""
    trace_share: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.otlp_endpoint and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"otlp_endpoint: must begin with http:// or https://, got {self.otlp_endpoint!r}"
            )
        if not 0 <= self.trace_share <= 1:
            raise ValueError(f"trace_share: must be from 0 to 1, got {self.trace_share}")


_tracing: Tracing = Off()
_span_var: contextvars.ContextVar[Span | None] = contextvars.ContextVar("span", default=None)


def setup_tracing(service: str, instance: str, config: TracesConfig) -> None:
    """Send spans of this process where its configuration says, from now on.

    Raises:
        ValueError: the OpenTelemetry packages are not installed.
    """
    if not config.otlp_endpoint:
        return
    try:
        from services.common.otel import OtelTracing, otlp_exporter
    except ImportError as error:
        raise ValueError(
            f"otlp_endpoint: needs the OpenTelemetry packages (pip install 'baton[traces]'): {error}"
        ) from error
    exporter = otlp_exporter(config.otlp_endpoint)
    use_tracing(OtelTracing(service, exporter, config.trace_share, instance))


def use_tracing(tracing: Tracing) -> None:
    """Send spans of this process there."""
    global _tracing
    _tracing.close()
    _tracing = tracing


def current_span() -> Span:
    """Return the span of the request that this task works for."""
    return _span_var.get() or PassedOn()


def current_trace_id() -> str:
    """Return its trace id, 32 hex digits; empty: it has none."""
    return trace_id_of(current_span().traceparent)


def trace_id_of(traceparent: str) -> str:
    """Return the trace id in a `traceparent`; empty: it is not valid."""
    found = _FORM.fullmatch(traceparent)
    return found[1] if found else ""


def receive(traceparent: str) -> None:
    """Take note of the caller's context: spans that this task begins are its children.

    Args:
        traceparent: as the caller sent it; one that is not valid counts as none.
    """
    _span_var.set(PassedOn(traceparent if trace_id_of(traceparent) else ""))


def begin(name: str, traceparent: str, **attributes: Value) -> Span:
    """Begin a span elsewhere than in a request's own task, such as when a COMMIT arrives."""
    return _tracing.begin(name, traceparent if trace_id_of(traceparent) else "", **attributes)


def begin_request(name: str, **attributes: Value) -> Span:
    """Begin the span of the request that this task works for, as a child of what it received."""
    span = _tracing.begin(name, current_span().traceparent, **attributes)
    _span_var.set(span)
    return span


def outgoing(span: Span) -> tuple[tuple[str, str], ...]:
    """Return the metadata of an RPC that works for a span."""
    return ((HEADER, span.traceparent),) if span.traceparent else ()


@contextlib.contextmanager
def request_span(name: str, **attributes: Value) -> Iterator[Span]:
    """`begin_request` for the length of a block; an exception ends it as an error."""
    span = begin_request(name, **attributes)
    try:
        yield span
    except GeneratorExit:
        span.end()
        raise
    except BaseException as error:
        span.end(error=type(error).__name__)
        raise
    span.end()
