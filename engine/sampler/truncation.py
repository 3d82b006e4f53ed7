"""Which tokens stay in the race: top-k, then top-p over what is left, then min-p.

Each is a threshold: a token stays if its scaled logit is at least the row's floor.
Tokens that tie with the last one to stay, stay too; so the result depends on no
order, and a kernel finds the same floor without a sort.

    top_k   the k-th largest value
    top_p   the largest value v such that the tokens >= v hold at least top_p of the mass
    min_p   max + log(min_p)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from engine.sampling_params import SamplingParams


def floors(scaled: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Find the least scaled logit that stays, row by row.

    Args:
        scaled: float32[R, V], logits over temperature; -inf: not to be drawn.
        params: R.
    Returns:
        float32[R]; -inf where nothing is cut.
    """
    floor = torch.full((len(params),), -math.inf)
    _top_k(scaled, params, floor)
    largest = scaled.amax(dim=-1)
    for row, sampling in enumerate(params):
        if sampling.top_p < 1.0:
            floor[row] = _top_p(scaled[row], float(floor[row]), float(largest[row]), sampling.top_p)
        if sampling.min_p > 0.0:
            floor[row] = max(float(floor[row]), float(largest[row]) + math.log(sampling.min_p))
    return floor


def _top_k(scaled: torch.Tensor, params: Sequence[SamplingParams], floor: torch.Tensor) -> None:
    vocab_size = scaled.shape[-1]
    rows = [row for row, sampling in enumerate(params) if 0 < sampling.top_k < vocab_size]
    if rows:
        ks = torch.tensor([params[row].top_k for row in rows])
        largest = (scaled if len(rows) == len(params) else scaled[rows]).topk(int(ks.max())).values
        floor[rows] = largest.gather(1, (ks - 1).unsqueeze(1)).squeeze(1)


def _top_p(scaled: torch.Tensor, floor: float, largest: float, top_p: float) -> float:
    """Return the floor of one row, which is at least the one given."""
    left = scaled if floor == -math.inf else scaled[scaled >= floor]
    weights = torch.exp(left - largest)
    total = float(weights.sum(dtype=torch.float64))
    # Tokens below this hold less than 1 - top_p together, so the set ends before
    # them: only the few above it are sorted, not the vocabulary.
    least = (1.0 - top_p) * total / len(weights)
    candidates = left[weights >= least].sort(descending=True).values
    mass = torch.exp(candidates - largest).cumsum(0, dtype=torch.float64)
    last = int(torch.searchsorted(mass, top_p * total))
    return float(candidates[min(last, len(candidates) - 1)])
