"""The one error of the services, and the table that gives each reason its statuses.

Exception
└── BatonError    reason (ErrorReason), message, field, retry_after_s

A reason travels as google.rpc.ErrorInfo (domain "baton") in the gRPC status; the
field at fault as google.rpc.BadRequest; a hint to try again as google.rpc.RetryInfo.
docs/errors.md says what a client should do about each.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import grpc


class ErrorReason(enum.Enum):
    """Why a request was refused or ended early; the name is what clients see."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    TOO_LARGE = "TOO_LARGE"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    WORKER_NOT_FOUND = "WORKER_NOT_FOUND"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    QUEUE_FULL = "QUEUE_FULL"
    OUT_OF_BLOCKS = "OUT_OF_BLOCKS"
    RATE_LIMITED = "RATE_LIMITED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    NO_WORKER = "NO_WORKER"
    WORKER_LOST = "WORKER_LOST"
    DRAINING = "DRAINING"
    RECEIVER_UNREACHABLE = "RECEIVER_UNREACHABLE"
    TRANSFER_FAILED = "TRANSFER_FAILED"
    LAYOUT_MISMATCH = "LAYOUT_MISMATCH"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    RESERVATION_GONE = "RESERVATION_GONE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class ErrorStatus:
    """How one reason is told.

    Attributes:
        grpc: status code of an RPC.
        http: status code of an HTTP answer.
        retry_after_s: hint to the client, seconds; None: retrying the same thing is no use, or needs no wait.
    """

    grpc: grpc.StatusCode
    http: int
    retry_after_s: float | None = None


_GRPC = grpc.StatusCode

ERROR_TABLE: dict[ErrorReason, ErrorStatus] = {
    ErrorReason.INVALID_ARGUMENT: ErrorStatus(_GRPC.INVALID_ARGUMENT, 400),
    ErrorReason.CONTEXT_LENGTH_EXCEEDED: ErrorStatus(_GRPC.INVALID_ARGUMENT, 400),
    ErrorReason.TOO_LARGE: ErrorStatus(_GRPC.INVALID_ARGUMENT, 413),
    ErrorReason.MODEL_NOT_FOUND: ErrorStatus(_GRPC.NOT_FOUND, 404),
    ErrorReason.WORKER_NOT_FOUND: ErrorStatus(_GRPC.NOT_FOUND, 404),
    ErrorReason.UNAUTHENTICATED: ErrorStatus(_GRPC.UNAUTHENTICATED, 401),
    ErrorReason.PERMISSION_DENIED: ErrorStatus(_GRPC.PERMISSION_DENIED, 403),
    ErrorReason.QUEUE_FULL: ErrorStatus(_GRPC.RESOURCE_EXHAUSTED, 429, retry_after_s=1.0),
    ErrorReason.OUT_OF_BLOCKS: ErrorStatus(_GRPC.RESOURCE_EXHAUSTED, 429),
    ErrorReason.RATE_LIMITED: ErrorStatus(_GRPC.RESOURCE_EXHAUSTED, 429, retry_after_s=1.0),
    ErrorReason.DEADLINE_EXCEEDED: ErrorStatus(_GRPC.DEADLINE_EXCEEDED, 504),
    ErrorReason.CANCELLED: ErrorStatus(_GRPC.CANCELLED, 499),
    ErrorReason.NO_WORKER: ErrorStatus(_GRPC.UNAVAILABLE, 503, retry_after_s=1.0),
    ErrorReason.WORKER_LOST: ErrorStatus(_GRPC.UNAVAILABLE, 503, retry_after_s=1.0),
    ErrorReason.DRAINING: ErrorStatus(_GRPC.UNAVAILABLE, 503, retry_after_s=1.0),
    ErrorReason.RECEIVER_UNREACHABLE: ErrorStatus(_GRPC.UNAVAILABLE, 503),
    ErrorReason.TRANSFER_FAILED: ErrorStatus(_GRPC.UNAVAILABLE, 503),
    ErrorReason.LAYOUT_MISMATCH: ErrorStatus(_GRPC.FAILED_PRECONDITION, 500),
    ErrorReason.LEASE_EXPIRED: ErrorStatus(_GRPC.FAILED_PRECONDITION, 500),
    ErrorReason.RESERVATION_GONE: ErrorStatus(_GRPC.FAILED_PRECONDITION, 500),
    ErrorReason.UNIMPLEMENTED: ErrorStatus(_GRPC.UNIMPLEMENTED, 501),
    ErrorReason.INTERNAL: ErrorStatus(_GRPC.INTERNAL, 500),
}


class BatonError(Exception):
    """A request was refused or ended early.

    Attributes:
        reason: key of ERROR_TABLE.
        message: for people; names the field and the limit of bad input.
        field: the request's field at fault, "sampling.top_p"; None: no single one.
        retry_after_s: when trying again is worth it, seconds; None: no hint.
    """

    def __init__(
        self,
        reason: ErrorReason,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = ERROR_TABLE[reason].retry_after_s if retry_after_s is None else retry_after_s

    @property
    def grpc_code(self) -> grpc.StatusCode:
        """Status code of an RPC that ends with this error."""
        return ERROR_TABLE[self.reason].grpc

    @property
    def http_code(self) -> int:
        """Status code of an HTTP answer with this error."""
        return ERROR_TABLE[self.reason].http
