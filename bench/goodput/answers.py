"""A few greedy prompts, asked alone and again under load."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from baton.aio import AsyncClient
from baton.errors import RequestError


@dataclass(frozen=True, slots=True)
class Agreement:
    """How answers under load compare with those given alone.

    Attributes:
        asked: prompts.
        equal: answers that are the same, token for token.
        first: answers whose first token is the same.
    """

    asked: int
    equal: int
    first: int


class Answers:
    """The prompts, and what they were answered alone.

    Args:
        lengths: of the prompts, tokens.
        tokens: lowest and highest token id to draw.
        num_out: tokens of an answer.
    """

    def __init__(self, address: str, lengths: Sequence[int], tokens: tuple[int, int], num_out: int) -> None:
        random = np.random.default_rng(4)
        self._address = address
        self._prompts = [random.integers(tokens[0], tokens[1] + 1, size).tolist() for size in lengths]
        self._num_out = num_out
        self._alone: list[list[int]] = []
        self._salts = 0

    async def ask_alone(self) -> Agreement:
        """Ask all of them twice, one at a time; the second answers are compared with the first."""
        self._alone = await self._ask(1)
        return self._compare(await self._ask(1))

    async def ask_again(self) -> Agreement:
        """Ask all at once, beside whatever runs."""
        return self._compare(await self._ask(len(self._prompts)))

    async def _ask(self, at_once: int) -> list[list[int]]:
        # Each time under another salt, so that every prompt is computed, and not found in a cache.
        self._salts += 1
        turns = asyncio.Semaphore(at_once)
        async with AsyncClient(self._address) as client:

            async def one(prompt: list[int]) -> list[int]:
                async with turns:
                    try:
                        answer = await client.complete(
                            token_ids=prompt,
                            max_tokens=self._num_out,
                            temperature=0.0,
                            ignore_eos=True,
                            cache_salt=f"goodput-{self._salts}",
                            timeout_s=60.0,
                        )
                    except RequestError:
                        if at_once > 1:
                            return []  # refused under load: no answer, which is not the same
                        raise
                return list(answer.token_ids)

            return list(await asyncio.gather(*(one(prompt) for prompt in self._prompts)))

    def _compare(self, answers: list[list[int]]) -> Agreement:
        pairs = list(zip(answers, self._alone, strict=True))
        return Agreement(
            asked=len(pairs),
            equal=sum(answer == alone for answer, alone in pairs),
            first=sum(answer[:1] == alone[:1] for answer, alone in pairs),
        )
