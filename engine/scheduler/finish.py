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


def runs_ahead(request: Request, context_length: int) -> bool:
    """Say whether a request may run once more before its pending token is known. Pure.

    Not if that token is its last whatever it is, so that no step runs a row in vain, nor if
    the host must know it first.
    """
    pending = request.num_pending_tokens
    max_tokens = request.sampling.max_tokens
    num_tokens = len(request.token_ids) + pending
    return (
        not request.needs_host_token
        and (max_tokens is None or num_tokens - request.num_prompt_tokens < max_tokens)
        and num_tokens < context_length
        and (request.max_new_tokens is None or request.num_sampled_tokens + pending < request.max_new_tokens)
    )
