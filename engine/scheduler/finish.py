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
    token_ids = request.token_ids
    token_id = token_ids[-1]
    if token_id in sampling.stop_token_ids or (token_id in eos_token_ids and not sampling.ignore_eos):
        return FinishReason.STOP
    num_tokens = len(token_ids)
    if sampling.max_tokens is not None and num_tokens - request.num_prompt_tokens >= sampling.max_tokens:
        return FinishReason.LENGTH
    if num_tokens >= context_length:
        return FinishReason.LENGTH
    return None


def token_limit(request: Request, context_length: int) -> int:
    """Return the number of tokens with which the answer ends, whatever they are. Pure.

    Known before the tokens are, so that no step runs a row in vain.
    """
    limit = context_length
    if request.sampling.max_tokens is not None:
        limit = min(limit, request.num_prompt_tokens + request.sampling.max_tokens)
    if request.max_new_tokens is not None:
        limit = min(limit, request.num_tokens + request.max_new_tokens - request.num_sampled_tokens)
    return limit
