"""How the token budget of one step is shared among prompts.

Steps take turns: one serves prompts by age, the next by what is left to compute,
shortest first. By age alone a short prompt would wait for the whole of a long one
before it; shortest first alone could starve the long one. In turns the long one
has at least every other step, and a short one waits for one step at most. Prompts
of equal length are served in order of age by both rules, one after the other,
which gives the least mean time to first token.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.request import Request
from engine.scheduler.claims import Claims


def cut_chunks(
    requests: Sequence[Request],
    budget: int,
    max_chunk_tokens: int,
    unit: int,
    shortest_first: bool,
    claims: Claims | None = None,
    *,
    answers_by_one: bool = False,
) -> list[tuple[Request, int]]:
    """Cut the chunks of one step. Modifies `claims`, nothing else.

    A chunk that does not reach the end of its request's tokens ends at a multiple of
    `unit`, unless the step would then run no chunk at all.

    Args:
        requests: most urgent first; all have tokens to compute.
        budget: tokens left in the step.
        max_chunk_tokens: most tokens of one request.
        unit: tokens; a whole number of blocks.
        shortest_first: order by what is left, within a priority.
        claims: what is computed already, for which a prompt waits; None: nothing.
        answers_by_one: tokens of an answer that are computed again (after a preemption, or elsewhere) run
            one a step, as they did the first time: decode and prefill kernels round differently.
    Returns:
        (request, num_tokens >= 1) in order of service; the sum is at most `budget`.
    """
    if shortest_first:
        requests = sorted(requests, key=lambda r: (r.priority, r.num_uncomputed_tokens, r.arrival))
    if max_chunk_tokens < unit:
        unit = 1
    chunks: list[tuple[Request, int]] = []
    for request in requests:
        if budget == 0:
            break
        start, remaining = request.num_computed_tokens, request.num_uncomputed_tokens
        if answers_by_one:
            remaining = min(remaining, max(1, request.num_prompt_tokens - start))
        num_tokens = min(remaining, max_chunk_tokens, budget)
        if num_tokens < remaining:
            surplus = (start + num_tokens) % unit
            if surplus < num_tokens:
                num_tokens -= surplus
            elif chunks:
                continue
        if claims is not None and not claims.take(request, num_tokens):
            continue
        chunks.append((request, num_tokens))
        budget -= num_tokens
    return chunks
