"""Turns every exception of a handler into a gRPC status, and keeps the log's request id."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from services.common.errors import BatonError, ErrorReason
from services.common.logs import log, request_id_var
from services.common.status import DETAILS_KEY, encode_status
from services.common.tracing import HEADER, receive

Translate = Callable[[Exception], BatonError | None]
Context = grpc.aio.ServicerContext[Message, Message]
ErrorListener = Callable[[BatonError], None]
Access = Callable[[str, Context], None]
"""Is given the method's full name; raises BatonError if this caller may not call it."""
UnaryBehaviour = Callable[[Message, Context], Awaitable[Message]]
StreamBehaviour = Callable[[Message, Context], AsyncGenerator[Message, None]]
RawUnaryBehaviour = Callable[[bytes, Context], Awaitable[Message]]
RawStreamBehaviour = Callable[[bytes, Context], AsyncGenerator[Message, None]]
Parse = Callable[[bytes], Message]

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_logger = logging.getLogger(__name__)


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Ends a failed call with the status of its BatonError.

    Args:
        translate: gives the BatonError of an exception of a lower layer, or None: then it is our bug, and
            the caller sees INTERNAL without its text.
        on_error: told of each error, for counters.
        access: asked before a request is parsed.
    """

    def __init__(self, translate: Translate, on_error: ErrorListener, access: Access) -> None:
        self._translate = translate
        self._on_error = on_error
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[_Request, _Response] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[_Request, _Response] | None:
        """Wrap the method's behaviour; Baton serves unary and server-streaming methods only."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/baton."):
            return handler
        method = handler_call_details.method
        # types-grpcio types the behaviours as those of the synchronous server.
        if handler.unary_unary is not None:
            unary = self._unary(
                cast(UnaryBehaviour, handler.unary_unary), method, cast(Parse, handler.request_deserializer)
            )
            wrapped: grpc.RpcMethodHandler[_Request, _Response] = grpc.unary_unary_rpc_method_handler(
                unary,
                None,
                handler.response_serializer,
            )
        else:
            stream = self._stream(
                cast(StreamBehaviour, handler.unary_stream), method, cast(Parse, handler.request_deserializer)
            )
            wrapped = grpc.unary_stream_rpc_method_handler(
                stream,
                None,
                handler.response_serializer,
            )
        return wrapped

    def _unary(self, behaviour: UnaryBehaviour, method: str, parse: Parse) -> RawUnaryBehaviour:
        async def call(raw: bytes, context: Context) -> Message:
            try:
                self._access(method, context)
                receive(_metadata(context, HEADER))
                request = _parse(parse, raw)
                return await behaviour(request, context)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:
                await self._abort(context, method, error)
                raise

        return call

    def _stream(self, behaviour: StreamBehaviour, method: str, parse: Parse) -> RawStreamBehaviour:
        async def call(raw: bytes, context: Context) -> AsyncGenerator[Message, None]:
            try:
                self._access(method, context)
                receive(_metadata(context, HEADER))
                request = _parse(parse, raw)
                # Closed here, so that the handler's cleanup does not wait for garbage collection.
                async with contextlib.aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
            except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
                raise
            except Exception as error:
                await self._abort(context, method, error)
                raise

        return call

    async def _abort(self, context: Context, method: str, error: Exception) -> None:
        known = error if isinstance(error, BatonError) else self._translate(error)
        if known is None:
            _logger.exception("handler failed: %s", method, exc_info=error)
            known = BatonError(ErrorReason.INTERNAL, "internal error; the service's log has the details")
        else:
            # What is wrong with a request may quote it, and prompts are not logged.
            quotes = known.grpc_code is grpc.StatusCode.INVALID_ARGUMENT
            log(
                _logger,
                logging.INFO,
                "request refused",
                method=method,
                reason=known.reason.name,
                field=known.field,
                error=None if quotes else known.message,
            )
        self._on_error(known)
        await context.abort(known.grpc_code, known.message, ((DETAILS_KEY, encode_status(known)),))


def _metadata(context: Context, name: str) -> str:
    value = dict(context.invocation_metadata() or ()).get(name, "")
    return value if isinstance(value, str) else ""


def _parse(parse: Parse, raw: bytes) -> Message:
    """Parse a request here and not in gRPC, which would answer UNKNOWN to a malformed one."""
    try:
        request = parse(raw)
    except DecodeError as error:
        raise BatonError(ErrorReason.INVALID_ARGUMENT, f"the request is malformed: {error}") from error
    request_id_var.set(getattr(request, "request_id", ""))
    return request
