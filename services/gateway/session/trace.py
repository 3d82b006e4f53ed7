"""Follows one request for those who watch: its bars on the page's timeline, and its spans."""

from __future__ import annotations

import time
from collections.abc import Callable

from baton.v1.prefill_pb2 import FirstToken, HandedOver
from services.common.tracing import PassedOn, Span, begin_request, outgoing, trace_id_of
from services.gateway.request import Request
from services.gateway.timeline import Bar, Timeline, Timelines

_LEAST_WAIT_S = 0.005

Metadata = tuple[tuple[str, str], ...]


class RequestTrace:
    """Told by the session and its attempts what happens, when it happens.

    Must be made in the task that serves the request: its span becomes that task's.

    Attributes:
        timeline: what has been noted.
        trace_id: of its spans; empty: none.
    """

    def __init__(self, request: Request, timelines: Timelines) -> None:
        self._timelines = timelines
        self.timeline = Timeline(
            key=request.key,
            request_id=request.request_id,
            received_s=request.received,
            started_unix_s=time.time() - (time.monotonic() - request.received),
            prompt_tokens=len(request.token_ids),
        )
        self._decode: Bar | None = None
        self._span = begin_request(
            "generate", request_id=request.request_id, prompt_tokens=len(request.token_ids)
        )
        self._reserve: Span = PassedOn()
        self._prefill: Span = PassedOn()
        self.trace_id = trace_id_of(self._span.traceparent)
        self._begun_s = self.timeline.now_s()
        self._count: Callable[[], int] = int
        timelines.add(self.timeline, self._count_tokens)

    def count_by(self, count: Callable[[], int]) -> None:
        """Ask `count` how many tokens went to the client, whenever somebody looks."""
        self._count = count

    def admitted(self) -> None:
        """The gateway lets it go to the workers; a wait that nobody would notice is not shown."""
        now_s = self.timeline.now_s()
        if now_s - self._begun_s > _LEAST_WAIT_S:
            self.timeline.begin("queue", at_s=self._begun_s).end_s = now_s
            self._span.child("admission", self.timeline.received_s + self._begun_s).end()
            self._touch()

    def reserve(self, worker: str) -> Metadata:
        """A reservation is asked for; returns the metadata of that call."""
        self.timeline.begin("queue", worker)
        self._touch()
        self._reserve = self._span.child("reserve", worker=worker)
        return outgoing(self._reserve)

    def reserved(self) -> None:
        """It was given."""
        self._reserve.end()
        self.timeline.end_open()
        self._touch()

    def prefill(self, worker: str) -> Metadata:
        """A prompt is sent to a prefill worker; returns the metadata of that call."""
        self.timeline.begin("prefill_queue", worker)
        self._touch()
        self._prefill = self._span.child("prefill", worker=worker)
        return outgoing(self._prefill)

    def first_token(self, first: FirstToken) -> None:
        """Prefill sampled; its own clock says when it did what."""
        timeline = self.timeline
        now_s = timeline.now_s()
        waited = next(bar for bar in reversed(timeline.bars) if bar.kind == "prefill_queue")
        received_s = max(waited.begin_s, now_s - first.queue_s - first.compute_s)
        waited.end_s = received_s + first.queue_s
        for chunk in first.chunks:
            bar = timeline.begin("chunk", waited.worker, received_s + chunk.begin_s)
            bar.end_s = min(now_s, bar.begin_s + chunk.duration_s)
            bar.tokens = chunk.num_tokens
        if timeline.ttft_s is None:
            timeline.ttft_s = round(now_s, 6)
            timeline.cached_tokens = min(first.cached_tokens, timeline.prompt_tokens)
            self._span.set(ttft_s=timeline.ttft_s, cached_tokens=timeline.cached_tokens)
        self._prefill.end()
        self._touch()

    def hand_off(self, prefill_worker: str, decode_worker: str) -> None:
        """The first token was there, the acknowledgement of the last blocks was not."""
        self._count_tokens()
        self.timeline.begin("handoff", prefill_worker)
        self._decode = self.timeline.begin("decode", decode_worker)
        self._touch()

    def handed_over(self, stats: HandedOver) -> None:
        """Decode has all blocks."""
        timeline = self.timeline
        for bar in timeline.bars:
            if bar.kind == "handoff" and bar.end_s is None:
                bar.end_s = bar.begin_s + stats.exposed_s
        timeline.transport = stats.transport
        timeline.handoff_bytes += stats.bytes
        self._touch()

    def lost(self, reason: str) -> None:
        """An attempt, or a prefill of it, came to nothing."""
        self._count_tokens()
        self.timeline.end_open(reason)
        self._end_calls(reason)
        self.timeline.retries += 1
        self._decode = None
        self._touch()

    def ended(self, outcome: str, reason: str = "") -> None:
        """Nothing more will come."""
        self._count_tokens()
        timeline = self.timeline
        timeline.end_open(reason)
        timeline.outcome, timeline.reason = outcome, reason
        timeline.total_s = round(timeline.now_s(), 6)
        self._end_calls(reason or outcome)
        self._span.set(completion_tokens=timeline.tokens, retries=timeline.retries, outcome=outcome)
        self._span.end(error=reason)
        self._timelines.end(timeline)

    def _count_tokens(self) -> None:
        new = self._count() - self.timeline.tokens
        if new:
            self.timeline.tokens += new
            if self._decode is not None:
                self._decode.tokens += new
            self._touch()

    def _end_calls(self, why: str) -> None:
        self._reserve.end(error=why)
        self._prefill.end(error=why)

    def _touch(self) -> None:
        self._timelines.touch(self.timeline)
