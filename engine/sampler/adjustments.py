"""What changes logits before a token is chosen: penalties, logit bias, min_tokens.

1 repetition   tokens of prompt and output: l / r if l > 0, else l * r  (Keskar et al. 2019)
2 frequency    l -= f * occurrences in the output
  presence     l -= p if it occurs in the output
3 logit bias   l += b
4 min_tokens   end-of-sequence and stop ids get -inf while the output is shorter
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.request import Request
from engine.sampling_params import SamplingParams

Row = npt.NDArray[np.float32]
"""float32[V], the logits of one row; changed in place."""


def has_penalties(sampling: SamplingParams) -> bool:
    """Whether logits depend on the tokens so far."""
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


def needs_adjustment(request: Request) -> bool:
    """Whether the next logits of a request are changed at all."""
    sampling = request.sampling
    return (
        bool(sampling.logit_bias)
        or request.num_output_tokens < sampling.min_tokens
        or has_penalties(sampling)
    )


class TokenHistory:
    """Distinct tokens of one request, and how often each is in the output; grows with it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._num_seen = request.num_prompt_tokens
        prompt = np.unique(np.array(request.token_ids[: self._num_seen], dtype=np.int64))
        self._size = len(prompt)
        self._slots = {int(token_id): slot for slot, token_id in enumerate(prompt)}
        self._token_ids = np.concatenate((prompt, np.zeros(64, dtype=np.int64)))
        self._counts = np.zeros(len(self._token_ids), dtype=np.float32)

    def update(self) -> None:
        """Count the output tokens that came since the last call."""
        for token_id in self.request.token_ids[self._num_seen :]:
            slot = self._slots.setdefault(token_id, self._size)
            if slot == self._size:
                self._size += 1
                if slot == len(self._token_ids):
                    self._token_ids = np.concatenate((self._token_ids, np.zeros_like(self._token_ids)))
                    self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
                self._token_ids[slot] = token_id
            self._counts[slot] += 1
        self._num_seen = self.request.num_tokens

    def penalize(self, row: Row) -> None:
        """Apply the penalties."""
        sampling = self.request.sampling
        token_ids, counts = self._token_ids[: self._size], self._counts[: self._size]
        logits = row[token_ids]
        if sampling.repetition_penalty != 1.0:
            penalty = np.float32(sampling.repetition_penalty)
            logits = np.where(logits > 0, logits / penalty, logits * penalty)
        logits -= np.float32(sampling.frequency_penalty) * counts
        logits -= np.float32(sampling.presence_penalty) * (counts > 0)
        row[token_ids] = logits


def apply_bias(row: Row, sampling: SamplingParams) -> None:
    """Add the logit bias."""
    if sampling.logit_bias:
        token_ids = np.fromiter(sampling.logit_bias.keys(), np.int64)
        row[token_ids] += np.fromiter(sampling.logit_bias.values(), np.float32)


def mask_endings(row: Row, request: Request, eos_token_ids: frozenset[int]) -> None:
    """Keep tokens that would end the answer from being drawn before min_tokens."""
    sampling = request.sampling
    if request.num_output_tokens < sampling.min_tokens:
        row[[*eos_token_ids, *sampling.stop_token_ids]] = -np.inf
