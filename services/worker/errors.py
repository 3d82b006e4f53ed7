"""What the errors of the engine and of kvtransfer mean to a caller."""

from __future__ import annotations

from engine.errors import (
    BlocksWithdrawnError,
    EngineStoppedError,
    GrammarError,
    InvalidRequestError,
    OutOfBlocksError,
    QueueFullError,
    SamplingError,
    StepFailedError,
    UnknownRequestError,
)
from kvtransfer.errors import (
    AbortedError,
    ClosedError,
    FingerprintMismatchError,
    InvalidPeerError,
    InvalidTransferError,
    LeaseExpiredError,
    ReceiverGoneError,
    RejectedError,
    StoppedError,
    TransferError,
    TransportUnavailableError,
)
from services.common.errors import BatonError, ErrorReason

# The first class that fits decides, so subclasses come before their bases.
_REASONS: tuple[tuple[type[Exception], ErrorReason], ...] = (
    (InvalidRequestError, ErrorReason.INVALID_ARGUMENT),
    (GrammarError, ErrorReason.INVALID_ARGUMENT),
    (QueueFullError, ErrorReason.QUEUE_FULL),
    (OutOfBlocksError, ErrorReason.OUT_OF_BLOCKS),
    (UnknownRequestError, ErrorReason.RESERVATION_GONE),
    (BlocksWithdrawnError, ErrorReason.RESERVATION_GONE),
    (EngineStoppedError, ErrorReason.WORKER_LOST),
    (SamplingError, ErrorReason.INTERNAL),
    (StepFailedError, ErrorReason.INTERNAL),
    (InvalidPeerError, ErrorReason.INVALID_ARGUMENT),
    (InvalidTransferError, ErrorReason.INVALID_ARGUMENT),
    (FingerprintMismatchError, ErrorReason.LAYOUT_MISMATCH),
    (TransportUnavailableError, ErrorReason.RECEIVER_UNREACHABLE),
    (ClosedError, ErrorReason.DRAINING),
    (AbortedError, ErrorReason.CANCELLED),
    (StoppedError, ErrorReason.RESERVATION_GONE),
    (RejectedError, ErrorReason.RESERVATION_GONE),
    (LeaseExpiredError, ErrorReason.LEASE_EXPIRED),
    (ReceiverGoneError, ErrorReason.RECEIVER_UNREACHABLE),
    (TransferError, ErrorReason.TRANSFER_FAILED),
)


def translate(error: Exception) -> BatonError | None:
    """Return the BatonError of an error of the engine or of kvtransfer; None: it is a bug of ours."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return BatonError(reason, str(error), field=getattr(error, "field", None))
    return None
