"""When an answer ends."""

from __future__ import annotations

from engine.request import FinishReason, Request


def finish_reason(
    request: Request, eos_token_ids: frozenset[int], context_length: int
) -> FinishReason | None:
    """Say whether the last token of a request ends its answer. Pure.

    An end-of-sequence or stop token goes before a length, as the answer is then complete.
    """
    sampling = request.sampling
    token_id = request.token_ids[-1]
    if token_id in sampling.stop_token_ids or (token_id in eos_token_ids and not sampling.ignore_eos):
        return FinishReason.STOP
    if sampling.max_tokens is not None and request.num_output_tokens >= sampling.max_tokens:
        return FinishReason.LENGTH
    if request.num_tokens >= context_length:
        return FinishReason.LENGTH
    return None
