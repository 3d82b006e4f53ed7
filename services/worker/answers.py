"""From the engine's words to protobuf."""

from __future__ import annotations

from baton.v1 import decode_pb2, prefill_pb2, sampling_pb2
from engine.events import TokenSampled
from engine.request import FinishReason, Request
from engine.step import Logprobs, SampledToken
from services.common.errors import BatonError, ErrorReason

FINISH_REASONS = {
    None: sampling_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: sampling_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: sampling_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: sampling_pb2.FINISH_REASON_CANCELLED,
}


def logprobs_proto(token: SampledToken) -> sampling_pb2.TokenLogprobs | None:
    """Return the log-probabilities of one position; None if they were not asked for."""
    return None if token.logprobs is None else _logprobs(token.token_id, token.logprobs)


def _logprobs(token_id: int, logprobs: Logprobs) -> sampling_pb2.TokenLogprobs:
    return sampling_pb2.TokenLogprobs(
        sampled=sampling_pb2.TokenLogprob(token_id=token_id, logprob=logprobs.sampled),
        top=[
            sampling_pb2.TokenLogprob(token_id=token_id, logprob=logprob)
            for token_id, logprob in zip(logprobs.top_ids, logprobs.top, strict=True)
        ],
    )


def first_token(
    request: Request, event: TokenSampled, received_s: float, sampled_s: float
) -> prefill_pb2.FirstToken:
    """Return the first token of a prompt.

    Args:
        received_s, sampled_s: time.monotonic() when the prompt came, and when the token was drawn.
    Raises:
        BatonError: UNIMPLEMENTED: log-probabilities of the prompt are asked for and not there.
    """
    started_s = request.first_run_s or sampled_s
    return prefill_pb2.FirstToken(
        token_id=event.token.token_id,
        logprobs=logprobs_proto(event.token),
        cached_tokens=event.num_cached_tokens,
        finish_reason=FINISH_REASONS[event.finish_reason],
        queue_s=started_s - received_s,
        compute_s=sampled_s - started_s,
        chunks=[
            prefill_pb2.ChunkTiming(
                start=chunk.start,
                num_tokens=chunk.num_tokens,
                begin_s=chunk.begun_s - received_s,
                duration_s=chunk.ended_s - chunk.begun_s,
            )
            for chunk in request.chunks
        ],
        prompt_logprobs=_prompt_logprobs(request),
    )


def _prompt_logprobs(request: Request) -> list[sampling_pb2.TokenLogprobs]:
    if request.sampling.prompt_logprobs is None:
        return []
    tokens = request.token_ids[1 : request.num_prompt_tokens]
    if len(request.prompt_logprobs) != len(tokens):
        message = "sampling.prompt_logprobs: this worker's backend does not compute them"
        raise BatonError(ErrorReason.UNIMPLEMENTED, message, field="sampling.prompt_logprobs")
    return [
        _logprobs(token, logprobs) for token, logprobs in zip(tokens, request.prompt_logprobs, strict=True)
    ]


def token_event(request_id: str, event: TokenSampled) -> decode_pb2.TokenEvent:
    """Return one request's share of a step."""
    logprobs = logprobs_proto(event.token)
    return decode_pb2.TokenEvent(
        request_id=request_id,
        token_ids=[event.token.token_id],
        logprobs=None if logprobs is None else [logprobs],
        finish_reason=FINISH_REASONS[event.finish_reason],
    )


def failure_event(request_id: str, error: BatonError) -> decode_pb2.TokenEvent:
    """Return the last word on a request that failed."""
    failure = decode_pb2.RequestFailure(reason=error.reason.name, message=error.message)
    return decode_pb2.TokenEvent(request_id=request_id, failure=failure)
