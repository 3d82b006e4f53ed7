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

import numpy as np
import numpy.typing as npt

from engine.sampling_params import SamplingParams


def find_floor(scaled: npt.NDArray[np.float32], largest: float, sampling: SamplingParams) -> float:
    """Find the least scaled logit that stays.

    Args:
        scaled: float32[V], logits over temperature; -inf: not to be drawn.
        largest: its maximum.
    Returns:
        -inf if nothing is cut.
    """
    floor = -math.inf
    if 0 < sampling.top_k < len(scaled):
        floor = float(np.partition(scaled, -sampling.top_k)[-sampling.top_k])
    if sampling.top_p < 1.0:
        left = scaled if floor == -math.inf else scaled[scaled >= floor]
        floor = _top_p_floor(left, largest, sampling.top_p)
    if sampling.min_p > 0.0:
        floor = max(floor, largest + math.log(sampling.min_p))
    return floor


def _top_p_floor(left: npt.NDArray[np.float32], largest: float, top_p: float) -> float:
    weights = np.exp(left - np.float32(largest))
    total = float(weights.sum(dtype=np.float64))
    # Tokens below this hold less than 1 - top_p together, so the set ends before
    # them: only the few above it are sorted, not the vocabulary.
    candidates = left[weights >= (1.0 - top_p) * total / len(left)]
    candidates = np.sort(candidates)[::-1]
    mass = np.cumsum(np.exp(candidates - np.float32(largest)), dtype=np.float64)
    last = min(int(np.searchsorted(mass, top_p * total)), len(candidates) - 1)
    return float(candidates[last])
