"""From logits to tokens, for all rows of a step.

    logits -> penalties, bias, min_tokens -> temperature 0: the largest
                                          -> else / temperature -> top-k, top-p, min-p -> race

A row's token depends on its own logits, parameters, tokens, and (seed, position),
never on its neighbours. philox.py says how the race is drawn, adjustments.py and
truncation.py what each parameter means; the CUDA sampler follows the same texts.

Row by row in NumPy, on one thread: a row stays in the cache that way, and nothing
waits at a barrier of threads when other workers share the cores (50k logits: argmax
2 us, partition 30 us). Only the noise of truncated rows is made for all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
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
from engine.sampler.truncation import find_floor
from engine.step import SampledToken

Row = npt.NDArray[np.float32]

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
        rows: list[Row] = list(logits.numpy())
        token_ids = [0] * len(requests)
        races = _Races()
        for index, (raw, request) in enumerate(zip(rows, requests, strict=True)):
            row = self._adjust(raw, request)
            best = int(row.argmax())
            # NaN and infinity win every comparison, so the winner tells of them all.
            if not np.isfinite(row[best]):
                raise EngineError(f"the model gave logits that are not finite, for {request.request_id!r}")
            token_ids[index] = best
            if not request.sampling.is_greedy:
                races.add(index, row, best, request)
        races.finish(token_ids)
        return [
            SampledToken(
                token_id,
                None
                if (count := request.sampling.logprobs) is None
                else compute_logprobs(raw, token_id, count),
            )
            for raw, token_id, request in zip(rows, token_ids, requests, strict=True)
        ]

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop what is kept of requests that ended; unknown ids are ignored."""
        for request_id in request_ids:
            self._histories.pop(request_id, None)

    def _adjust(self, row: Row, request: Request) -> Row:
        if not needs_adjustment(request):
            return row
        row = row.copy()
        if has_penalties(request.sampling):
            history = self._history(request)
            history.update()
            history.penalize(row)
        apply_bias(row, request.sampling)
        mask_endings(row, request, self._eos_token_ids)
        return row

    def _history(self, request: Request) -> TokenHistory:
        history = self._histories.get(request.request_id)
        # An id may come back with another request behind it.
        if history is None or history.request is not request:
            history = self._histories[request.request_id] = TokenHistory(request)
        return history


class _Races:
    """The races of one step; those with few runners are run together at the end."""

    def __init__(self) -> None:
        self._indices: list[int] = []
        self._runners: list[npt.NDArray[np.int64]] = []
        self._scaled: list[Row] = []
        self._seeds: list[int] = []
        self._positions: list[int] = []
        self._winners: list[tuple[int, int]] = []

    def add(self, index: int, row: Row, best: int, request: Request) -> None:
        sampling = request.sampling
        scaled = row / np.float32(max(sampling.temperature, _LEAST_TEMPERATURE))
        floor = find_floor(scaled, float(scaled[best]), sampling)
        if floor == -np.inf:
            noise = gumbel_all(sampling.seed, request.num_tokens, len(row))
            self._winners.append((index, int(np.argmax(scaled + noise))))
            return
        runners = np.flatnonzero(scaled >= np.float32(floor))
        self._indices.append(index)
        self._runners.append(runners)
        self._scaled.append(scaled[runners])
        self._seeds.append(sampling.seed)
        self._positions.append(request.num_tokens)

    def finish(self, token_ids: list[int]) -> None:
        """Write the winners."""
        for index, winner in self._winners:
            token_ids[index] = winner
        if not self._indices:
            return
        counts = [len(runners) for runners in self._runners]
        noise = gumbel_at(
            np.repeat(np.array(self._seeds, dtype=np.uint64), counts),
            np.repeat(np.array(self._positions, dtype=np.uint64), counts),
            np.concatenate(self._runners),
        )
        scores = np.split(np.concatenate(self._scaled) + noise, np.cumsum(counts)[:-1])
        for index, runners, score in zip(self._indices, self._runners, scores, strict=True):
            token_ids[index] = int(runners[np.argmax(score)])
