"""Handler of /v1/responses: text and calls of tools, nothing stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing

from baton.v1.inference_pb2 import Finished, Started
from baton.v1.sampling_pb2 import SamplingParams
from services.common.errors import BatonError
from services.gateway.generator import Generator
from services.gateway.http.constraints import text_constraint, with_calls
from services.gateway.http.exchange import JSON, Exchange
from services.gateway.http.formats import Choice
from services.gateway.http.generation import prepare_for
from services.gateway.http.params import base_sampling, show_tools
from services.gateway.http.parse import parse_body
from services.gateway.http.reader import Reader
from services.gateway.http.response_events import Event, ResponseWriter
from services.gateway.http.response_input import conversation
from services.gateway.http.responses_schema import ResponsesBody
from services.gateway.http.tools import response_tools
from services.gateway.http.values import dump_line
from services.gateway.request import ChatInput
from services.gateway.session.session import Session


class ResponsesApi:
    """See the module."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._model = generator.model

    async def create(self, exchange: Exchange) -> None:
        """POST /v1/responses."""
        body = parse_body(ResponsesBody, await exchange.read_body(self._generator.config.max_body_bytes))
        self._model.check_name(body.model)
        use = response_tools(body, self._model.template)
        request = await prepare_for(
            exchange,
            self._generator,
            body,
            ChatInput(conversation(body), "input", tools=show_tools(use.shown if use else ())),
            _sampling(body),
            shown_tokens=self._model.shown_tokens(with_tools=use is not None),
            constraint=await with_calls(text_constraint(body.text), use, self._model.tokenizer),
        )
        names, format = (use.names, use.format) if use else (frozenset[str](), None)
        parser = self._model.message_parser(request.prompt_text or "", names, format)
        reader = Reader(request, parser, max_calls=1 if body.parallel_tool_calls is False else None)
        writer = ResponseWriter(body, self._model.name, self._model.tokenizer)
        (session,) = self._generator.start([request])
        try:
            send = _send_stream if body.stream else _send_whole
            await exchange.until_disconnect(send(exchange, session, reader, writer))
        finally:
            session.close()


async def _send_whole(exchange: Exchange, session: Session, reader: Reader, writer: ResponseWriter) -> None:
    choice = Choice(0)
    async with aclosing(session.events()) as events:
        async for event in events:
            reader.take(choice, event)
    writer.add(choice)
    writer.close(choice, reader)
    await exchange.answer(json.dumps(writer.response, ensure_ascii=False).encode(), JSON)


async def _send_stream(exchange: Exchange, session: Session, reader: Reader, writer: ResponseWriter) -> None:
    try:
        async with aclosing(session.events()) as events:
            async for event in events:
                if isinstance(event, Started):
                    continue  # an error may still become a status: the first token begins the answer
                shown: list[Event] = []
                if not exchange.has_started:
                    await exchange.start_events()
                    shown += writer.open()
                choice = Choice(0)
                reader.take(choice, event)
                shown += writer.add(choice)
                is_last = isinstance(event, Finished)
                if is_last:
                    shown += writer.close(choice, reader)
                if shown:
                    await exchange.send_events(_encode(shown), more=not is_last)
    except BatonError as error:
        if exchange.has_started:
            await exchange.send_events(_encode([writer.fail(error)]))
        raise


def _encode(events: Sequence[Event]) -> bytes:
    return "".join(f"event: {event['type']}\ndata: {dump_line(event)}\n\n" for event in events).encode()


def _sampling(body: ResponsesBody) -> SamplingParams:
    params = base_sampling(body)
    if body.max_output_tokens is not None:
        params.max_tokens = body.max_output_tokens
    if body.top_logprobs is not None or "message.output_text.logprobs" in (body.include or ()):
        params.logprobs = body.top_logprobs or 0
    return params
