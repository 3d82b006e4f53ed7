"""From logits to tokens, for all rows of a step at once.

    logits -> penalties, bias, min_tokens -> temperature 0: the largest
                                          -> else / temperature -> top-k, top-p, min-p -> race

A row's token depends on its own logits, parameters, tokens, and (seed, position),
never on its neighbours. philox.py says how the race is drawn, adjustments.py and
truncation.py what each parameter means; the CUDA sampler follows the same texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from engine.errors import EngineError
from engine.request import Request
from engine.sampler.adjustments import (
    TokenHistory,
    apply_bias,
    has_penalties,
    mask_endings,
    needs_adjustment,
)
from engine.sampler.logprobs import compute_logprobs
from engine.sampler.philox import gumbel_all, gumbel_at
from engine.sampler.truncation import floors
from engine.step import SampledToken

# A smaller one would overflow the division, and is greedy in all but name.
_LEAST_TEMPERATURE = 1e-5


class Sampler:
    """Draws tokens on the CPU; keeps token counts of requests with penalties until `forget`."""

    def __init__(self, eos_token_ids: frozenset[int]) -> None:
        self._eos_token_ids = eos_token_ids
        self._histories: dict[str, TokenHistory] = {}

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[SampledToken]:
        """Draw the next token of each request. Leaves `logits` as they are.

        Args:
            logits: float32[R, V] on the CPU, of the last token of each request.
            requests: R; the drawn token's position is the request's num_tokens.
        Raises:
            EngineError: a row's logits hold NaN or infinity.
        """
        if not requests:
            return []
        if not torch.isfinite(logits.amax(dim=-1)).all():
            bad = [r.request_id for r, row in zip(requests, logits, strict=True) if not row.amax().isfinite()]
            raise EngineError(f"the model gave logits that are not finite, for {bad}")
        adjusted = self._adjust(logits, requests)
        greedy = [row for row, request in enumerate(requests) if request.sampling.is_greedy]
        if len(greedy) == len(requests):
            token_ids: list[int] = adjusted.argmax(dim=-1).tolist()
        else:
            token_ids = [0] * len(requests)
            drawn = [row for row, request in enumerate(requests) if not request.sampling.is_greedy]
            if greedy:
                _put(token_ids, greedy, adjusted[greedy].argmax(dim=-1).tolist())
                adjusted = adjusted[drawn]
            _put(token_ids, drawn, _draw(adjusted, [requests[row] for row in drawn]))
        logprobs = compute_logprobs(logits, token_ids, requests)
        return [SampledToken(t, lp) for t, lp in zip(token_ids, logprobs, strict=True)]

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop what is kept of requests that ended; unknown ids are ignored."""
        for request_id in request_ids:
            self._histories.pop(request_id, None)

    def _adjust(self, logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
        rows = [row for row, request in enumerate(requests) if needs_adjustment(request)]
        if not rows:
            return logits
        adjusted = logits.clone()
        for row in rows:
            request, values = requests[row], adjusted[row].numpy()
            if has_penalties(request.sampling):
                history = self._history(request)
                history.update()
                history.penalize(values)
            apply_bias(values, request.sampling)
            mask_endings(values, request, self._eos_token_ids)
        return adjusted

    def _history(self, request: Request) -> TokenHistory:
        history = self._histories.get(request.request_id)
        # An id may come back with another request behind it.
        if history is None or history.request is not request:
            history = self._histories[request.request_id] = TokenHistory(request)
        return history


def _put(token_ids: list[int], rows: Sequence[int], values: Sequence[int]) -> None:
    for row, value in zip(rows, values, strict=True):
        token_ids[row] = value


def _draw(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """Run the race in each row: float32[R, V] -> R token ids."""
    params = [request.sampling for request in requests]
    temperatures = torch.tensor([max(sampling.temperature, _LEAST_TEMPERATURE) for sampling in params])
    scaled = logits / temperatures.unsqueeze(1)
    floor = floors(scaled, params)
    token_ids = [0] * len(requests)
    cut = (floor > -torch.inf).nonzero().squeeze(1)
    if len(cut):
        values = scaled[cut] if len(cut) < len(requests) else scaled
        _put(token_ids, cut.tolist(), _race_some(values, floor[cut], [requests[row] for row in cut.tolist()]))
    for row in (floor == -torch.inf).nonzero().squeeze(1).tolist():
        token_ids[row] = _race_all(scaled[row], requests[row])
    return token_ids


def _race_all(scaled: torch.Tensor, request: Request) -> int:
    """One row in which every token takes part."""
    noise = gumbel_all(request.sampling.seed, request.num_tokens, scaled.shape[-1])
    return int(np.argmax(scaled.numpy() + noise))


def _race_some(scaled: torch.Tensor, floor: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """Rows in which truncation left few tokens; noise is made for these alone, all rows at once."""
    rows, token_ids = (scaled >= floor.unsqueeze(1)).numpy().nonzero()
    counts = np.bincount(rows, minlength=len(requests))
    seeds = np.array([request.sampling.seed for request in requests], dtype=np.uint64)
    positions = np.array([request.num_tokens for request in requests], dtype=np.uint64)
    scores = scaled.numpy()[rows, token_ids] + gumbel_at(seeds[rows], positions[rows], token_ids)
    ends = np.cumsum(counts)
    return [
        int(token_ids[start + np.argmax(scores[start:end])])
        for start, end in zip(ends - counts, ends, strict=True)
    ]
