"""An OpenTelemetry collector in the test's own process: real OTLP over gRPC, spans kept in a list."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Seen:
    """One span as it arrived; ids in hex, an empty parent: none."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    begin_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, object]


class OtlpCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """Serves TraceService on a free port of loopback."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Seen] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop(0).wait()

    def Export(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        with self._lock:
            for resource in request.resource_spans:
                facts = {item.key: item.value.string_value for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self._spans += [_seen(facts["service.name"], span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[Seen]:
        with self._lock:
            return list(self._spans)

    def wait_for(self, is_enough: Callable[[list[Seen]], bool], timeout_s: float = 15.0) -> list[Seen]:
        deadline = time.monotonic() + timeout_s
        while not is_enough(self.spans()):
            assert time.monotonic() < deadline, sorted((span.service, span.name) for span in self.spans())
            time.sleep(0.05)
        return self.spans()


def _seen(service: str, span) -> Seen:  # type: ignore[no-untyped-def]
    values = {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}
    return Seen(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        begin_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        failed=span.status.code == 2,
        attributes=values,
    )
