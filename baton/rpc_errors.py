"""A failed RPC as one of the exceptions of baton.errors."""

from __future__ import annotations

import grpc

from baton.errors import (
    CancelledError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    RequestError,
    ServerError,
    UnauthenticatedError,
    UnavailableError,
)
from services.common.status import DETAILS_KEY, parse_status

_CLASSES: dict[grpc.StatusCode, type[RequestError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
}


def request_error(error: grpc.RpcError, address: str) -> RequestError:
    """Return the exception that a failed call to the gateway at `address` stands for."""
    parsed = parse_status(error)
    if parsed.grpc_code is grpc.StatusCode.UNAVAILABLE and not _has_details(error):
        return UnavailableError(f"no gateway answers at {address}: {parsed.message}", "UNREACHABLE")
    kind = _CLASSES.get(parsed.grpc_code, ServerError)
    return kind(parsed.message, parsed.reason.name, parsed.field or "", parsed.retry_after_s)


def _has_details(error: grpc.RpcError) -> bool:
    if not isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return False
    return any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())
