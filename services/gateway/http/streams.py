"""Runs the sessions behind one HTTP request and shows their events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from baton.v1.inference_pb2 import Delta, Finished, Started
from services.gateway.http.exchange import JSON, Exchange
from services.gateway.http.formats import Choice, Format, Head, show_usage
from services.gateway.http.outlets import EventOutlet, TextOutlet
from services.gateway.http.protocol import Chunks
from services.gateway.http.reader import Reader
from services.gateway.http.schema import StreamOptions
from services.gateway.http.values import Json
from services.gateway.session.session import Event, Outlet, Session

_DONE = b"data: [DONE]\n\n"


class Answers:
    """The answers of one HTTP request, one a session.

    Args:
        readers: one a session.
        num_samples: consecutive sessions that answer the same prompt.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        readers: Sequence[Reader],
        num_samples: int,
        format: Format,
        model: str,
    ) -> None:
        self._sessions = sessions
        self._readers = readers
        self._num_samples = num_samples
        self._format = format
        self._head = Head(format, model)
        self._opened: set[int] = set()
        self._tail = ""
        self._every_usage = False

    async def send_whole(self, exchange: Exchange, num_choices: int) -> None:
        """Answer when all is complete, with the `num_choices` likeliest samples of each prompt.

        Raises:
            BatonError: a session failed.
        """
        choices = [Choice(index) for index in range(len(self._sessions))]
        async with aclosing(merge(self._sessions)) as events:
            async for index, event in events:
                self._readers[index].take(choices[index], event)
        best = self._best(choices, num_choices)
        await exchange.answer(self._head.whole(best, self._usage()), JSON)

    async def send_stream(self, exchange: Exchange, options: StreamOptions | None) -> None:
        """Answer as it comes.

        Raises:
            BatonError: a session failed.
        """
        with_usage = bool(options and options.include_usage)
        self._every_usage = bool(with_usage and options and options.continuous_usage_stats)
        self._tail = ', "usage": null' if with_usage else ""
        async with aclosing(merge(self._sessions, self._outlet(exchange.chunks))) as events:
            async for index, event in events:
                if isinstance(event, Started):
                    continue  # an error may still become a status: the first token begins the answer
                if not exchange.has_started:
                    await exchange.start_events()
                shown = self._show(index, event)
                if shown:
                    await exchange.send_events(shown)
        last = self._head.event([], self._usage_tail()) if with_usage else b""
        await exchange.send_events(last + _DONE, more=False)

    def _show(self, index: int, event: Delta | Finished) -> bytes:
        """Return the server-sent events that an event of a session becomes; may be none."""
        choice = Choice(index)
        self._readers[index].take(choice, event)
        if self._every_usage:
            self._tail = self._usage_tail()
        opening = self._format.opening(choice) if index not in self._opened else None
        self._opened.add(index)
        parts = [self._head.event([opening], self._tail)] if opening else []
        if not choice.is_empty:
            parts.append(self._head.event([self._format.chunk(choice)], self._tail))
        return b"".join(parts)

    def _outlet(self, chunks: Chunks | None) -> Outlet | None:
        """Return where the tokens of an only session go, from its second on: past `_show`, or through it."""
        if chunks is None:
            return None
        if self._readers[0].is_plain and not self._every_usage:
            return TextOutlet(chunks, *self._head.text_frame(0, self._tail))
        return EventOutlet(chunks, lambda text, token: self._show(0, Delta(text=text, token_ids=[token])))

    def _best(self, choices: list[Choice], num_choices: int) -> list[Choice]:
        """Keep the samples of each prompt with the highest mean log-probability a token, best first."""
        count = self._num_samples
        if num_choices == count:
            return choices
        kept: list[Choice] = []
        for start in range(0, len(choices), count):
            samples = sorted(choices[start : start + count], key=self._mean_logprob, reverse=True)
            kept.extend(samples[:num_choices])
        for index, choice in enumerate(kept):
            choice.index = index
        return kept

    def _mean_logprob(self, choice: Choice) -> float:
        reader = self._readers[choice.index]
        return reader.logprob_sum / max(1, reader.usage.completion_tokens)

    def _usage(self) -> dict[str, Json]:
        return show_usage([reader.usage for reader in self._readers], self._num_samples)

    def _usage_tail(self) -> str:
        return f', "usage": {json.dumps(self._usage())}'


async def merge(
    sessions: Sequence[Session], outlet: Outlet | None = None
) -> AsyncGenerator[tuple[int, Event], None]:
    """Give the events of all sessions as they come; the first error ends it.

    Args:
        outlet: may get the tokens of an only session instead.
    """
    if len(sessions) == 1:
        async with aclosing(sessions[0].events(outlet)) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()

    async def pump(index: int, session: Session) -> None:
        try:
            async with aclosing(session.events()) as events:
                async for event in events:
                    queue.put_nowait((index, event))
        finally:
            queue.put_nowait((index, None))

    tasks = [asyncio.create_task(pump(index, session)) for index, session in enumerate(sessions)]
    try:
        running = len(tasks)
        while running:
            index, item = await queue.get()
            if item is not None:
                yield index, item
            else:
                running -= 1
                await tasks[index]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
