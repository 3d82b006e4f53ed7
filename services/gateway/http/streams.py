"""Runs the sessions behind one HTTP request and shows their events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from baton.v1.inference_pb2 import Delta, Finished, Started, Usage
from services.gateway.http.exchange import JSON, Exchange
from services.gateway.http.formats import Choice, Format, Head, show_usage
from services.gateway.http.schema import GenerationBody
from services.gateway.session.session import Event, Session

_DONE = b"data: [DONE]\n\n"


class Answers:
    """The answers of one HTTP request, one a session.

    Args:
        num_choices: consecutive sessions that answer the same prompt.
    """

    def __init__(self, sessions: Sequence[Session], num_choices: int, format: Format, model: str) -> None:
        self._sessions = sessions
        self._num_choices = num_choices
        self._format = format
        self._head = Head(format, model)
        self._usages = [Usage(prompt_tokens=len(session.request.token_ids)) for session in sessions]

    async def send(self, exchange: Exchange, body: GenerationBody) -> None:
        """Answer as the body asks, and free everything if the client leaves.

        Raises:
            BatonError: a session failed.
        """
        work = self._send_stream(exchange, body) if body.stream else self._send_whole(exchange)
        await exchange.until_disconnect(work)

    async def _send_whole(self, exchange: Exchange) -> None:
        choices = [Choice(index) for index in range(len(self._sessions))]
        async with aclosing(_merge(self._sessions)) as events:
            async for index, event in events:
                self._take(choices[index], event)
        await exchange.answer(self._head.whole(choices, show_usage(self._usages, self._num_choices)), JSON)

    async def _send_stream(self, exchange: Exchange, body: GenerationBody) -> None:
        options = body.stream_options
        with_usage = bool(options and options.include_usage)
        every_usage = bool(with_usage and options and options.continuous_usage_stats)
        opened: set[int] = set()
        async with aclosing(_merge(self._sessions)) as events:
            async for index, event in events:
                if isinstance(event, Started):
                    continue  # an error may still become a status: the first token begins the answer
                if not exchange.has_started:
                    await exchange.start_events()
                choice = Choice(index)
                self._take(choice, event)
                tail = self._usage_tail() if every_usage else ', "usage": null' if with_usage else ""
                opening = self._format.opening(choice) if index not in opened else None
                opened.add(index)
                parts = [self._head.event([opening], tail)] if opening else []
                if choice.text or choice.logprobs or choice.finish_reason:
                    parts.append(self._head.event([self._format.chunk(choice)], tail))
                if parts:
                    await exchange.send_events(b"".join(parts))
        last = self._head.event([], self._usage_tail()) if with_usage else b""
        await exchange.send_events(last + _DONE, more=False)

    def _usage_tail(self) -> str:
        return f', "usage": {json.dumps(show_usage(self._usages, self._num_choices))}'

    def _take(self, choice: Choice, event: Event) -> None:
        """Add an event to a choice and to the usage."""
        if isinstance(event, Delta):
            choice.text += event.text
            choice.logprobs.extend(event.logprobs)
            self._usages[choice.index].completion_tokens += len(event.token_ids)
        elif isinstance(event, Finished):
            choice.finish_reason = event.reason
            self._usages[choice.index] = event.usage


async def _merge(sessions: Sequence[Session]) -> AsyncGenerator[tuple[int, Event], None]:
    """Give the events of all sessions as they come; the first error ends it."""
    if len(sessions) == 1:
        async with aclosing(sessions[0].events()) as events:
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
