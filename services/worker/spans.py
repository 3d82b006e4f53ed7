"""What a worker's spans say of a prompt."""

from __future__ import annotations

from baton.v1 import prefill_pb2
from services.common.tracing import Span


def note_prompt(span: Span, first: prefill_pb2.FirstToken, received_s: float) -> None:
    """Add the queue and each chunk of a prompt that has its first token, as children of the RPC's span.

    Args:
        received_s: time.monotonic() when the prompt came.
    """
    if not span.traceparent:
        return
    span.set(cached_tokens=first.cached_tokens)
    span.child("queue", received_s).end(received_s + first.queue_s)
    for chunk in first.chunks:
        begin_s = received_s + chunk.begin_s
        span.child("chunk", begin_s, start=chunk.start, tokens=chunk.num_tokens).end(
            begin_s + chunk.duration_s
        )
