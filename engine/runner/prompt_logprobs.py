"""Log-probabilities of a prompt's own tokens, from the logits of the chunks that compute it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine.backends.batch import IntArray
from engine.sampler.logprobs import compute_logprobs
from engine.step import Logprobs, ScheduledRow


def is_wanted(rows: Sequence[ScheduledRow]) -> bool:
    """Whether a row's request asks for them."""
    return any(row.request.sampling.prompt_logprobs is not None for row in rows)


def foretelling_rows(rows: Sequence[ScheduledRow]) -> IntArray:
    """int32[P], rising: index, among the step's tokens, of each that foretells an asked-for prompt token."""
    found: list[IntArray] = []
    base = 0
    for row in rows:
        found.append(np.arange(base, base + num_foretold(row), dtype=np.int32))
        base += row.num_tokens
    return np.concatenate(found)


def num_foretold(row: ScheduledRow) -> int:
    """How many of a row's tokens, from its first on, foretell an asked-for token of the prompt."""
    request = row.request
    if request.sampling.prompt_logprobs is None:
        return 0
    return max(0, min(row.start + row.num_tokens, request.num_prompt_tokens - 1) - row.start)


def prompt_logprobs(rows: Sequence[ScheduledRow], logits: torch.Tensor) -> dict[str, list[Logprobs]]:
    """Return those of a step by request id: of the tokens at start + 1, start + 2, ...

    Args:
        logits: float32[P, V] on the CPU, of `foretelling_rows`.
    """
    values = iter(logits.numpy())
    found: dict[str, list[Logprobs]] = {}
    for row in rows:
        request = row.request
        foretold = request.token_ids[row.start + 1 : row.start + 1 + num_foretold(row)]
        if foretold:
            count = request.sampling.prompt_logprobs or 0
            found[request.request_id] = [
                compute_logprobs(next(values), token_id, count) for token_id in foretold
            ]
    return found
