"""From logits to tokens, for all rows of a step.

    logits -> penalties, bias, min_tokens, grammar -> temperature 0: the largest
                                                   -> else / temperature -> top-k, top-p, min-p -> race

A row's token depends on its own logits, parameters, tokens, and (seed, position),
never on its neighbours. philox.py says how the race is drawn, adjustments.py and
truncation.py what each parameter means; the CUDA sampler follows the same texts.

Row by row on one thread: a row stays in the cache that way, and nothing waits at a
barrier of threads when other workers share the cores (50k logits: argmax 2 us,
partition 30 us, random words 30 us).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from engine.errors import SamplingError
from engine.grammar.bitmask import allowed_tokens, forbid
from engine.grammar.state import Words
from engine.request import Request
from engine.sampler.adjustments import (
    TokenHistory,
    apply_bias,
    has_penalties,
    mask_endings,
    needs_adjustment,
)
from engine.sampler.logprobs import compute_logprobs
from engine.sampler.race import run_race
from engine.sampler.truncation import find_floor
from engine.step import Draw, SampledToken

_log = logging.getLogger(__name__)

Row = npt.NDArray[np.float32]
NOT_FINITE = "the model gave logits that are not finite"

# A smaller one would overflow the division, and is greedy in all but name.
_LEAST_TEMPERATURE = 1e-5


class Sampler:
    """Draws tokens on the CPU; keeps token counts of requests with penalties until `forget`."""

    def __init__(self, eos_token_ids: frozenset[int]) -> None:
        self._eos_token_ids = eos_token_ids
        self._histories: dict[str, TokenHistory] = {}

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[Draw]:
        """Draw the next token of each request. Leaves `logits` as they are.

        Args:
            logits: float32[R, V] on the CPU, of the last token of each request.
            requests: R; the drawn token's position is the request's num_tokens.
        Returns:
            R; an error where a row's logits hold NaN or infinity, or cannot be adjusted.
        """
        rows = logits.numpy()
        allowed = allowed_tokens(requests, rows.shape[1])
        return [
            self._try_row(row, request, None if allowed is None or not request.grammar else allowed[index])
            for index, (row, request) in enumerate(zip(rows, requests, strict=True))
        ]

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop what is kept of requests that ended; unknown ids are ignored."""
        for request_id in request_ids:
            self._histories.pop(request_id, None)

    def _try_row(self, raw: Row, request: Request, allowed: Words | None) -> Draw:
        try:
            return self._sample_row(raw, request, allowed)
        except SamplingError as error:
            return error
        except Exception as bug:
            _log.exception("sampling of %s failed", request.request_id)
            return SamplingError(f"sampling failed: {type(bug).__name__}: {bug}")

    def _sample_row(self, raw: Row, request: Request, allowed: Words | None) -> SampledToken:
        sampling = request.sampling
        row = self._adjust(raw, request, allowed)
        token_id = int(row.argmax())
        # NaN and infinity win every comparison, so the largest tells of them all.
        if not np.isfinite(row[token_id]):
            raise SamplingError(NOT_FINITE)
        if not sampling.is_greedy:
            token_id = _draw(row, token_id, request)
        if sampling.logprobs is None:
            return SampledToken(token_id)
        return SampledToken(token_id, compute_logprobs(raw, token_id, sampling.logprobs))

    def _adjust(self, row: Row, request: Request, allowed: Words | None) -> Row:
        if allowed is None and not needs_adjustment(request):
            return row
        row = row.copy()
        if has_penalties(request.sampling):
            history = self._history(request)
            history.update()
            history.penalize(row)
        apply_bias(row, request.sampling)
        mask_endings(row, request, self._eos_token_ids)
        if allowed is not None:
            forbid(row, allowed)
        return row

    def _history(self, request: Request) -> TokenHistory:
        history = self._histories.get(request.request_id)
        # An id may come back with another request behind it.
        if history is None or history.request is not request:
            history = self._histories[request.request_id] = TokenHistory(request)
        return history


def _draw(row: Row, best: int, request: Request) -> int:
    sampling = request.sampling
    scaled = row / np.float32(max(sampling.temperature, _LEAST_TEMPERATURE))
    floor = find_floor(scaled, float(scaled[best]), sampling)
    return run_race(scaled, best, floor, sampling.seed, request.num_tokens)
