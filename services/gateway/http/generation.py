"""Handlers of /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence, Set

from baton.v1.sampling_pb2 import SamplingParams
from services.common.logs import request_id_var
from services.common.tracing import HEADER, receive
from services.gateway.generator import Generator
from services.gateway.http.constraints import Constraint, body_constraint, with_calls
from services.gateway.http.exchange import Exchange
from services.gateway.http.formats import ChatFormat, Format, TextFormat
from services.gateway.http.params import (
    chat_input,
    chat_sampling,
    completion_inputs,
    completion_sampling,
    is_scoring,
    num_samples,
)
from services.gateway.http.parse import parse_body
from services.gateway.http.reader import Echo, Reader
from services.gateway.http.schema import ChatBody, CompletionBody, GenerationBody, SamplingBody
from services.gateway.http.streams import Answers
from services.gateway.http.tools import chat_tools
from services.gateway.request import Input, Request, prepare, replicate
from services.gateway.text.message import MessageParser


class GenerationApi:
    """Chats and plain completions."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._model = generator.model

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        body = parse_body(ChatBody, await exchange.read_body(self._generator.config.max_body_bytes))
        self._model.check_name(body.model)
        use = chat_tools(body, self._model.template)
        source = chat_input(body.messages, use.shown if use else (), body.chat_template_kwargs)
        request = await prepare_for(
            exchange,
            self._generator,
            body,
            source,
            chat_sampling(body),
            shown_tokens=self._model.shown_tokens(with_tools=use is not None),
            constraint=await with_calls(body_constraint(body), use, self._model.tokenizer),
        )
        requests = replicate(request, body.n or 1)
        names, format = (use.names, use.format) if use else (frozenset[str](), None)
        max_calls = 1 if body.parallel_tool_calls is False else None
        readers = [
            Reader(one, self._model.message_parser(one.prompt_text or "", names, format), max_calls=max_calls)
            for one in requests
        ]
        await self._answer(exchange, body, requests, readers, ChatFormat(self._model.tokenizer))

    async def completions(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        body = parse_body(CompletionBody, await exchange.read_body(self._generator.config.max_body_bytes))
        self._model.check_name(body.model)
        sampling = completion_sampling(body)
        constraint = body_constraint(body)
        requests: list[Request] = []
        for source in completion_inputs(body):
            request = await prepare_for(
                exchange, self._generator, body, source, sampling, constraint=constraint
            )
            requests.extend(replicate(request, num_samples(body)))
        readers = [
            Reader(
                one,
                MessageParser(None, None),
                echo=Echo(self._prompt(one), one.token_ids[0]) if body.echo else None,
                is_scoring=is_scoring(body),
                shows_logprobs=body.logprobs is not None,
            )
            for one in requests
        ]
        await self._answer(
            exchange, body, requests, readers, TextFormat(self._model.tokenizer, body.prompt_logprobs)
        )

    def _prompt(self, request: Request) -> str:
        if request.prompt_text is not None:
            return request.prompt_text
        return self._model.tokenizer.decode(request.token_ids)

    async def _answer(
        self,
        exchange: Exchange,
        body: GenerationBody,
        requests: Sequence[Request],
        readers: Sequence[Reader],
        format: Format,
    ) -> None:
        """Run the requests, and free everything whatever happens."""
        num_choices = body.n or 1
        samples = num_samples(body) if isinstance(body, CompletionBody) else num_choices
        sessions = self._generator.start(requests, samples)
        try:
            answers = Answers(sessions, readers, samples, format, self._model.name)
            if body.stream:
                work = answers.send_stream(exchange, body.stream_options)
            else:
                work = answers.send_whole(exchange, num_choices)
            await exchange.until_disconnect(work)
        finally:
            for session in sessions:
                session.close()


async def prepare_for(
    exchange: Exchange,
    generator: Generator,
    body: SamplingBody,
    source: Input,
    sampling: SamplingParams,
    *,
    shown_tokens: Set[int] = frozenset(),
    constraint: Constraint | None = None,
) -> Request:
    """Return a request that can run.

    Raises:
        BatonError: as `prepare`.
    """
    request_id_var.set(exchange.request_id)
    receive(exchange.header(HEADER))
    if constraint is not None:
        sampling.grammar.CopyFrom(constraint.grammar)
    return await prepare(
        generator.model,
        source,
        sampling,
        grammar_field=constraint.field if constraint else "",
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        caller=exchange.caller,
        request_id=exchange.request_id,
        shown_tokens=shown_tokens,
        timeout_s=exchange.timeout_s(generator.config.request_timeout_s),
    )
