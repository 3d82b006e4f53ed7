"""InferenceService: the public gRPC API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from weakref import ref

import grpc

from baton.v1.inference_pb2 import (
    Delta,
    DetokenizeRequest,
    DetokenizeResponse,
    GenerateRequest,
    GenerateResponse,
    ListModelsRequest,
    ListModelsResponse,
    Model,
    Started,
    TokenizeRequest,
    TokenizeResponse,
)
from baton.v1.inference_pb2_grpc import InferenceServiceServicer
from services.common.errors import BatonError, ErrorReason
from services.common.logs import request_id_var
from services.gateway.generator import Generator
from services.gateway.http.constraints import Constraint, with_calls
from services.gateway.http.params import show_tools
from services.gateway.http.tools import ToolUse
from services.gateway.request import ChatInput, Input, TextInput, TokenInput, prepare, tokenize
from services.gateway.rpc.chat import MessageEvents, request_tools, template_variables, turns
from services.gateway.session.session import Event, Session
from services.gateway.text.chat_template import Json


class InferenceServicer(InferenceServiceServicer):
    """Serves InferenceService from a Generator; raises BatonError, which the server's interceptor tells."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    async def Generate(  # noqa: N802
        self,
        request: GenerateRequest,
        context: grpc.aio.ServicerContext[GenerateRequest, GenerateResponse],
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Stream the answer to one prompt."""
        generator = self._generator
        caller = generator.callers.identify_call(context)
        model = generator.model
        model.check_name(request.model)
        remaining_s = context.time_remaining()
        use = request_tools(request, model.template)
        constraint = await with_calls(_asked(request), use, model.tokenizer) if use else None
        if constraint is not None:
            request.sampling.grammar.CopyFrom(constraint.grammar)
        is_chat = request.WhichOneof("input") == "messages"
        prepared = await prepare(
            model,
            _input(request, use, template_variables(request)),
            request.sampling,
            prefix="sampling.",
            grammar_field=constraint.field if constraint else "",
            priority=request.priority,
            cache_salt=request.cache_salt,
            caller=caller,
            request_id=request.request_id,
            shown_tokens=model.shown_tokens(with_tools=use is not None) if is_chat else frozenset(),
            timeout_s=generator.config.request_timeout_s if remaining_s is None else remaining_s,
        )
        request_id_var.set(prepared.request_id)
        names, format = (use.names, use.format) if use else (frozenset[str](), None)
        parser = model.message_parser(prepared.prompt_text or "", names, format) if is_chat else None
        parts: MessageEvents | None = None
        if parser is not None and not parser.is_plain:
            parts = MessageEvents(parser, 1 if request.tool_choice.single else None)
        (session,) = generator.start([prepared])
        # A client that leaves while a message is being written does not wake this coroutine. gRPC's context
        # stays until the collector comes; the session need not.
        context.add_done_callback(_Closing(session))  # type: ignore[arg-type]
        try:
            async with aclosing(session.events()) as events:
                async for event in events:
                    if parts is None:
                        yield _response(event)
                        continue
                    for part in parts.take(event):
                        yield _response(part)
        finally:
            session.close()

    async def ListModels(  # noqa: N802
        self,
        request: ListModelsRequest,
        context: grpc.aio.ServicerContext[ListModelsRequest, ListModelsResponse],
    ) -> ListModelsResponse:
        """Name the models that have a worker of each kind."""
        self._generator.callers.identify_call(context)
        model = self._generator.model
        if not model.is_ready:
            return ListModelsResponse()
        limits = model.limits()
        return ListModelsResponse(
            models=[
                Model(
                    name=model.name,
                    context_length=limits.context_length,
                    vocab_size=limits.vocab_size,
                    block_size=limits.block_size,
                )
            ]
        )

    async def Tokenize(  # noqa: N802
        self,
        request: TokenizeRequest,
        context: grpc.aio.ServicerContext[TokenizeRequest, TokenizeResponse],
    ) -> TokenizeResponse:
        """Turn text or messages into token ids."""
        self._generator.callers.identify_call(context)
        self._generator.model.check_name(request.model)
        token_ids, _text = await tokenize(self._generator.model, _input(request))
        return TokenizeResponse(token_ids=token_ids)

    async def Detokenize(  # noqa: N802
        self,
        request: DetokenizeRequest,
        context: grpc.aio.ServicerContext[DetokenizeRequest, DetokenizeResponse],
    ) -> DetokenizeResponse:
        """Turn token ids into text."""
        self._generator.callers.identify_call(context)
        self._generator.model.check_name(request.model)
        return DetokenizeResponse(text=self._generator.model.detokenize(request.token_ids, "token_ids"))


class _Closing:
    """Closes a session if it is still there."""

    def __init__(self, session: Session) -> None:
        self._session = ref(session)

    def __call__(self, _context: object) -> None:
        session = self._session()
        if session is not None:
            session.close()


def _asked(request: GenerateRequest) -> Constraint | None:
    if not request.sampling.HasField("grammar"):
        return None
    return Constraint(request.sampling.grammar, "sampling.grammar")


def _input(
    request: GenerateRequest | TokenizeRequest,
    use: ToolUse | None = None,
    variables: Mapping[str, Json] | None = None,
) -> Input:
    kind = request.WhichOneof("input")
    if kind == "text":
        return TextInput(request.text, "text")
    if kind == "messages":
        return ChatInput(
            turns(request.messages.messages),
            "messages.messages",
            tools=show_tools(use.shown if use else ()),
            variables=variables or {},
        )
    if isinstance(request, GenerateRequest) and kind == "token_ids":
        return TokenInput(request.token_ids.ids, "token_ids")
    known = "text, messages" + (" and token_ids" if isinstance(request, GenerateRequest) else "")
    raise BatonError(
        ErrorReason.INVALID_ARGUMENT, f"input: exactly one of {known} must be set", field="input"
    )


def _response(event: Event) -> GenerateResponse:
    if isinstance(event, Delta):
        return GenerateResponse(delta=event)
    if isinstance(event, Started):
        return GenerateResponse(started=event)
    return GenerateResponse(finished=event)
