"""What asks to be admitted, and what it holds once it is: see admission."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from services.gateway.access import Caller

if TYPE_CHECKING:
    from services.gateway.admission import Admission


class Demand(Protocol):
    """What a request asks for."""

    @property
    def caller(self) -> Caller:
        """Whose it is."""

    @property
    def priority(self) -> int:
        """Lower is more urgent."""

    @property
    def deadline(self) -> float:
        """When it must be done, on the admission's clock."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of the answer."""


class Ticket:
    """One admitted request: it waits, starts, runs, and is given back.

    Attributes:
        turn: set when it may start.
        has_place: it is one of the running ones.
    """

    def __init__(self, admission: Admission, demand: Demand, tokens: int) -> None:
        self._admission = admission
        self.demand = demand
        self._tokens = tokens
        self.turn = asyncio.Event()
        self._waits = self._counts = True
        self.has_place = False
        self._ran_at: float | None = None
        self._token_at: float | None = None
        self._is_decoding = False
        admission.waiting += 1
        for quota in admission.quotas(demand.caller):
            quota.take(tokens)

    async def start(self) -> None:
        """Wait for a place among the running ones. BatonError: as Admission.enter."""
        await self._admission.enter(self, self.demand.deadline)

    def run(self) -> None:
        """Stop waiting. Idempotent."""
        if self._waits:
            self._waits = False
            self._admission.waiting -= 1
            self._ran_at = self._admission.clock()
            self._admission.pace.on_exit()

    def tokens(self, count: int, now: float) -> None:
        """Take note that tokens came, the first or more.

        Args:
            count: >= 1.
            now: on the admission's clock.
        """
        if self._token_at is None:
            self._admission.pace.on_stream_begins()
        elif self._is_decoding:
            self._admission.pace.on_gap((now - self._token_at) / count)
        else:  # what lay between was the hand-off
            self._is_decoding = True
        self._token_at = now

    def release(self, output_tokens: int = 0, *, is_whole: bool = True) -> None:
        """Give the place back. Idempotent.

        Args:
            output_tokens: generated.
            is_whole: the answer has come to its end, and so says how long answers are.
        """
        if not self._counts:
            return
        self._counts = False
        if self._waits:
            self._waits = False
            self._admission.waiting -= 1
        elif self._ran_at is not None and output_tokens and is_whole:
            self._admission.pace.on_end(self._admission.clock() - self._ran_at, output_tokens)
        if self._token_at is not None:
            self._admission.pace.on_stream_ends()
        with self._admission.ledger.locked():
            for quota in self._admission.quotas(self.demand.caller):
                quota.give_back(self._tokens, self.demand.num_prompt_tokens + output_tokens)
        if self.has_place:
            self.has_place = False
            self._admission.leave()
