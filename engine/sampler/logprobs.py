"""Log-probabilities of drawn tokens under the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.request import Request
from engine.step import Logprobs


def compute_logprobs(
    logits: torch.Tensor, token_ids: Sequence[int], requests: Sequence[Request]
) -> list[Logprobs | None]:
    """Return what each request asks for.

    Args:
        logits: float32[R, V], as the model gave them: before penalties, temperature and truncation.
        token_ids: R drawn tokens.
    Returns:
        R entries; None where sampling.logprobs is None.
    """
    result: list[Logprobs | None] = [None] * len(requests)
    counts = {row: r.sampling.logprobs for row, r in enumerate(requests) if r.sampling.logprobs is not None}
    if not counts:
        return result
    rows = list(counts)
    logprobs = logits[rows].log_softmax(dim=-1)
    sampled = logprobs.gather(1, torch.tensor([[token_ids[row]] for row in rows])).squeeze(1).tolist()
    top = logprobs.topk(min(max(counts.values()), logits.shape[-1]))
    top_ids, top_values = top.indices.tolist(), top.values.tolist()
    for index, (row, count) in enumerate(counts.items()):
        result[row] = Logprobs(
            sampled[index], tuple(top_ids[index][:count]), tuple(top_values[index][:count])
        )
    return result
