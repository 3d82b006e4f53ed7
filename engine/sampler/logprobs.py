"""Log-probabilities of one position under the model's own distribution."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from engine.step import Logprobs


def compute_logprobs(logits: npt.NDArray[np.float32], token_id: int, count: int) -> Logprobs:
    """Return the log-probability of the drawn token and of the most likely ones.

    Args:
        logits: float32[V], as the model gave them: before penalties, temperature and truncation.
        count: how many of the most likely; equal ones in order of id.
    """
    largest = logits.max()
    normalizer = float(largest) + math.log(np.exp(logits - largest).sum(dtype=np.float64))
    top_ids: list[int] = []
    if count:
        rank = min(count, len(logits))
        kept = np.flatnonzero(logits >= np.partition(logits, -rank)[-rank])
        top_ids = kept[np.argsort(-logits[kept], kind="stable")][:count].tolist()
    top = tuple(float(logits[top_id]) - normalizer for top_id in top_ids)
    return Logprobs(float(logits[token_id]) - normalizer, tuple(top_ids), top)
