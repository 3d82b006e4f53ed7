"""InferenceService: the public gRPC API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from baton.v1.inference_pb2 import (
    ChatMessages,
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
from services.gateway.request import ChatInput, Input, TextInput, TokenInput, prepare, tokenize
from services.gateway.session.session import Event


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
        generator.model.check_name(request.model)
        remaining_s = context.time_remaining()
        prepared = await prepare(
            generator.model,
            _input(request),
            request.sampling,
            prefix="sampling.",
            priority=request.priority,
            cache_salt=request.cache_salt,
            caller=caller,
            request_id=request.request_id,
            timeout_s=generator.config.request_timeout_s if remaining_s is None else remaining_s,
        )
        request_id_var.set(prepared.request_id)
        (session,) = generator.start([prepared])
        # A client that leaves while a message is being written does not wake this coroutine.
        context.add_done_callback(lambda _context: session.close())  # type: ignore[arg-type]
        try:
            async with aclosing(session.events()) as events:
                async for event in events:
                    yield _response(event)
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


def _input(request: GenerateRequest | TokenizeRequest) -> Input:
    kind = request.WhichOneof("input")
    if kind == "text":
        return TextInput(request.text, "text")
    if kind == "messages":
        return ChatInput(_messages(request.messages), "messages.messages")
    if isinstance(request, GenerateRequest) and kind == "token_ids":
        return TokenInput(request.token_ids.ids, "token_ids")
    known = "text, messages" + (" and token_ids" if isinstance(request, GenerateRequest) else "")
    raise BatonError(
        ErrorReason.INVALID_ARGUMENT, f"input: exactly one of {known} must be set", field="input"
    )


def _messages(conversation: ChatMessages) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in conversation.messages]


def _response(event: Event) -> GenerateResponse:
    if isinstance(event, Delta):
        return GenerateResponse(delta=event)
    if isinstance(event, Started):
        return GenerateResponse(started=event)
    return GenerateResponse(finished=event)
