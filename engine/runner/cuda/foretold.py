"""Log-probabilities of prompts' own tokens, on the device; engine/runner/prompt_logprobs.py says which."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.backends.batch import IntArray
from engine.backends.cuda.sampling import logprobs
from engine.runner.prompt_logprobs import foretelling_rows, is_wanted, num_foretold
from engine.step import Logprobs, ScheduledRow


@dataclass(frozen=True, slots=True)
class Foretold:
    """What a step's logits are wanted for beyond draws.

    Attributes:
        asked: (request id, wish, how many) of each row that foretells prompt tokens.
        wanted: int32[W], rising: the step's tokens whose logits are wanted, those to draw from included.
        lasts: int32[R], where those to draw from stand in `wanted`.
        wishes: int32[W], most likely tokens wanted; -1: only drawn from.
        next_tokens: int32[W], that follow in the prompt.
        places: int32[P], where those with a wish stand in `wanted`, row by row.
    """

    asked: tuple[tuple[str, int, int], ...]
    wanted: IntArray
    lasts: IntArray
    wishes: IntArray
    next_tokens: IntArray
    places: IntArray

    @property
    def parts(self) -> tuple[IntArray, ...]:
        """What goes to the device."""
        return self.lasts, self.wishes, self.next_tokens


def foretold(rows: Sequence[ScheduledRow], lasts: IntArray) -> Foretold | None:
    """Work out a step's wishes; None: no request has any.

    Args:
        lasts: int32[R], rising: the step's tokens that are drawn from.
    """
    if not is_wanted(rows):
        return None
    foretelling = foretelling_rows(rows)
    wanted = np.union1d(lasts, foretelling).astype(np.int32)
    places = np.searchsorted(wanted, foretelling).astype(np.int32)
    wishes, next_tokens = np.full(len(wanted), -1, np.int32), np.zeros(len(wanted), np.int32)
    asked: list[tuple[str, int, int]] = []
    found: list[int] = []
    counts: list[int] = []
    for row in rows:
        count = num_foretold(row)
        if count:
            wish = row.request.sampling.prompt_logprobs or 0
            asked.append((row.request.request_id, wish, count))
            counts += [wish] * count
            found += row.request.token_ids[row.start + 1 : row.start + 1 + count]
    wishes[places], next_tokens[places] = counts, found
    where = np.searchsorted(wanted, lasts).astype(np.int32)
    return Foretold(tuple(asked), wanted, where, wishes, next_tokens, places)


@dataclass(frozen=True, slots=True)
class ForetoldValues:
    """The kernel's answer, on its way to pinned memory: float32[W, 21], int32[W, 21]."""

    wishes: Foretold
    values: torch.Tensor
    ids: torch.Tensor

    @classmethod
    def compute(cls, wishes: Foretold, logits: torch.Tensor, parts: Sequence[torch.Tensor]) -> ForetoldValues:
        """Launch it.

        Args:
            logits: float32[W, V].
            parts: wishes.parts on the device, as bytes.
        """
        _, counts, tokens = (part.view(torch.int32) for part in parts)
        return cls(wishes, *logprobs(logits, counts, tokens))

    def by_request(self, values: torch.Tensor, ids: torch.Tensor) -> dict[str, list[Logprobs]]:
        """Take apart what has arrived on the host."""
        result: dict[str, list[Logprobs]] = {}
        places = iter(self.wishes.places.tolist())
        for request_id, wish, count in self.wishes.asked:
            result[request_id] = [
                _logprobs(values[place], ids[place], wish) for place in itertools.islice(places, count)
            ]
        return result


def _logprobs(values: torch.Tensor, ids: torch.Tensor, wish: int) -> Logprobs:
    numbers: list[float] = values[: wish + 1].tolist()
    return Logprobs(numbers[0], tuple(ids[1 : wish + 1].tolist()), tuple(numbers[1:]))
