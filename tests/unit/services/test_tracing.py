"""Trace context without a collector: what is passed on, and what is recorded."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import tracing
from services.common.logs import JsonFormatter
from services.common.otel import OtelTracing
from services.common.tracing import TracesConfig

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = PARENT.split("-")[1]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.use_tracing(OtelTracing("test", exporter))
    yield exporter
    tracing.use_tracing(tracing.Off())
    tracing.receive("")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        PARENT + "\r\nx: y",
    ],
)
def test_what_is_no_traceparent_counts_as_none(header: str) -> None:
    tracing.receive(header)
    assert tracing.current_trace_id() == ""
    assert tracing.outgoing(tracing.current_span()) == ()


def test_off_the_context_is_passed_on_and_stands_in_the_log() -> None:
    tracing.receive(PARENT)
    span = tracing.begin_request("generate")
    assert tracing.outgoing(span.child("prefill")) == (("traceparent", PARENT),)
    record = logging.LogRecord("x", logging.INFO, "", 0, "hello", None, None)
    assert json.loads(JsonFormatter("test").format(record))["trace_id"] == TRACE_ID
    tracing.receive("")
    assert "trace_id" not in json.loads(JsonFormatter("test").format(record))


def test_spans_have_their_parents_times_and_errors(spans: InMemorySpanExporter) -> None:
    tracing.receive(PARENT)
    begun = time.monotonic() - 1.0
    with contextlib.suppress(KeyError), tracing.request_span("generate", request_id="r") as span:
        span.child("chunk", begun, tokens=3).end(begun + 0.25)
        raise KeyError
    remote = tracing.begin("decode", span.traceparent)
    remote.end()
    remote.end(error="late")
    tracing.use_tracing(tracing.Off())
    chunk, generate, decode = spans.get_finished_spans()
    assert {f"{one.context.trace_id:032x}" for one in (chunk, generate, decode)} == {TRACE_ID}
    assert f"{generate.parent.span_id:016x}" == PARENT.split("-")[2]
    assert chunk.parent.span_id == decode.parent.span_id == generate.context.span_id
    assert chunk.end_time - chunk.start_time == pytest.approx(0.25e9, abs=1e6)
    assert chunk.start_time == pytest.approx(time.time_ns() - 1e9, abs=0.5e9)
    assert (generate.status.description, decode.status.is_ok) == ("KeyError", True)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="otlp_endpoint: must begin with http"):
        TracesConfig("localhost:4317")
    with pytest.raises(ValueError, match="trace_share: must be from 0 to 1"):
        TracesConfig(trace_share=2.0)
