"""BatonError to a gRPC status with details, and back."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import BatonError, ErrorReason

DOMAIN = "baton"
DETAILS_KEY = "grpc-status-details-bin"

# What an RPC error means that carries no ErrorInfo: it came from gRPC itself.
_REASON_OF_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: ErrorReason.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND: ErrorReason.MODEL_NOT_FOUND,
    grpc.StatusCode.UNAUTHENTICATED: ErrorReason.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: ErrorReason.PERMISSION_DENIED,
    grpc.StatusCode.DEADLINE_EXCEEDED: ErrorReason.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: ErrorReason.CANCELLED,
    grpc.StatusCode.UNAVAILABLE: ErrorReason.WORKER_LOST,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ErrorReason.TOO_LARGE,
    grpc.StatusCode.UNIMPLEMENTED: ErrorReason.UNIMPLEMENTED,
}


def encode_status(error: BatonError) -> bytes:
    """Return the serialized google.rpc.Status of an error, for the trailing metadata DETAILS_KEY."""
    status = status_pb2.Status(code=error.grpc_code.value[0], message=error.message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason.name, domain=DOMAIN))
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(retry)
    encoded: bytes = status.SerializeToString()
    return encoded


def parse_status(error: grpc.RpcError) -> BatonError:
    """Return the BatonError that a failed RPC carries.

    An error without a baton ErrorInfo (a broken connection, a message over gRPC's
    limit) gets the reason that its code stands for; an unknown one is INTERNAL.
    """
    if not isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return BatonError(ErrorReason.INTERNAL, str(error))
    code, message = error.code(), error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            parsed = _parse_details(value)
            if parsed is not None:
                return parsed
    return BatonError(_REASON_OF_CODE.get(code, ErrorReason.INTERNAL), message or code.name)


def _parse_details(encoded: bytes) -> BatonError | None:
    reason: ErrorReason | None = None
    field: str | None = None
    retry_after_s: float | None = None
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    try:
        status = status_pb2.Status.FromString(encoded)
        for detail in status.details:
            if detail.Unpack(info) and info.domain == DOMAIN and info.reason in ErrorReason.__members__:
                reason = ErrorReason[info.reason]
            elif detail.Unpack(bad_request) and bad_request.field_violations:
                field = bad_request.field_violations[0].field
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    except DecodeError:
        return None
    if reason is None:
        return None
    return BatonError(reason, status.message, field=field, retry_after_s=retry_after_s)
