"""Turns every exception of a handler into a gRPC status, and keeps the log's request id."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar, cast

import grpc
from google.protobuf.message import Message

from services.common.errors import BatonError, ErrorReason
from services.common.logs import log, request_id_var
from services.common.status import DETAILS_KEY, encode_status

Translate = Callable[[Exception], BatonError | None]
Context = grpc.aio.ServicerContext[Message, Message]
ErrorListener = Callable[[BatonError], None]
UnaryBehaviour = Callable[[Message, Context], Awaitable[Message]]
StreamBehaviour = Callable[[Message, Context], AsyncGenerator[Message, None]]

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_logger = logging.getLogger(__name__)


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Ends a failed call with the status of its BatonError.

    Args:
        translate: gives the BatonError of an exception of a lower layer, or None: then it is our bug, and
            the caller sees INTERNAL without its text.
        on_error: told of each error, for counters.
    """

    def __init__(self, translate: Translate, on_error: ErrorListener) -> None:
        self._translate = translate
        self._on_error = on_error

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
            unary = self._unary(cast(UnaryBehaviour, handler.unary_unary), method)
            wrapped = grpc.unary_unary_rpc_method_handler(
                unary,
                handler.request_deserializer,
                handler.response_serializer,
            )
        else:
            stream = self._stream(cast(StreamBehaviour, handler.unary_stream), method)
            wrapped = grpc.unary_stream_rpc_method_handler(
                stream,
                handler.request_deserializer,
                handler.response_serializer,
            )
        return wrapped

    def _unary(self, behaviour: UnaryBehaviour, method: str) -> UnaryBehaviour:
        async def call(request: Message, context: Context) -> Message:
            request_id_var.set(getattr(request, "request_id", ""))
            try:
                return await behaviour(request, context)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:
                await self._abort(context, method, error)
                raise

        return call

    def _stream(self, behaviour: StreamBehaviour, method: str) -> StreamBehaviour:
        async def call(request: Message, context: Context) -> AsyncGenerator[Message, None]:
            request_id_var.set(getattr(request, "request_id", ""))
            try:
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
            log(
                _logger,
                logging.INFO,
                "request refused",
                method=method,
                reason=known.reason.name,
                error=known.message,
            )
        self._on_error(known)
        await context.abort(known.grpc_code, known.message, ((DETAILS_KEY, encode_status(known)),))
