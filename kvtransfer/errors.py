"""Errors of kvtransfer.

KvTransferError
├── InvalidTransferError           an argument is out of range; nothing was changed
├── ClosedError                    the sender or receiver was closed
├── SharedMemoryError              a shared-memory file cannot be made or mapped
├── CudaError                      GPU memory cannot be had, exported or opened
├── PeerError                      a peer cannot be used
│   ├── InvalidPeerError           its description is malformed
│   ├── FingerprintMismatchError   its blocks have another layout
│   └── TransportUnavailableError  no transport reaches it
├── FrameError                     a frame from the wire cannot be used
│   ├── MalformedFrameError        wrong size, magic, version, kind or field
│   └── CorruptFrameError          the checksum does not match
└── TransferError                  a transfer ended without ACK; its blocks must not be used
    ├── AbortedError               this side called fail()
    ├── StoppedError               the receiver released or superseded it
    ├── RejectedError              the receiver refused it, with a reason
    ├── LeaseExpiredError          the receiver stopped answering, or granted no room, for a lease
    └── ReceiverGoneError          the receiver died, was forgotten, or never answered
"""

from __future__ import annotations


class KvTransferError(Exception):
    """Base of everything that kvtransfer raises on purpose."""


class InvalidTransferError(KvTransferError, ValueError):
    """An argument is out of range; the message names the field and the limit."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class ClosedError(KvTransferError):
    """The sender or receiver was closed."""


class SharedMemoryError(KvTransferError):
    """A shared-memory file cannot be made or mapped; the message names it and the sizes."""


class CudaError(KvTransferError):
    """GPU memory cannot be had, exported or opened; the message says whose and why."""


class PeerError(KvTransferError):
    """A peer cannot be used."""


class InvalidPeerError(PeerError):
    """A peer's description is malformed; the message names the field."""


class FingerprintMismatchError(PeerError):
    """A peer's blocks have another layout; the message names what differs."""


class TransportUnavailableError(PeerError):
    """No transport reaches a peer; the message says why for each."""


class FrameError(KvTransferError):
    """A frame from the wire cannot be used."""


class MalformedFrameError(FrameError):
    """Wrong size, magic, version, kind or field."""


class CorruptFrameError(FrameError):
    """The checksum does not match."""


class TransferError(KvTransferError):
    """A transfer ended without ACK."""


class AbortedError(TransferError):
    """This side called fail()."""


class StoppedError(TransferError):
    """The receiver released the blocks, or expects a later epoch."""


class RejectedError(TransferError):
    """The receiver refused the transfer.

    Attributes:
        reason: machine-readable; one of `frames.RejectReason`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class LeaseExpiredError(TransferError):
    """The receiver stopped answering, or granted no room, for a lease."""


class ReceiverGoneError(TransferError):
    """The receiver died, was forgotten, or never answered."""
