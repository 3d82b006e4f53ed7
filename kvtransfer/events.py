"""What a receiver reports; raised on its I/O thread, so handlers must be quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrived:
    """Blocks are in place, not yet committed.

    Attributes:
        transfer_id: the transfer.
        num_blocks: blocks placed by this event alone.
    """

    transfer_id: str
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Committed:
    """Every announced block is in place; they may be read.

    Attributes:
        transfer_id: the transfer.
        epoch: the attempt.
        payload: what the sender passed to commit().
        num_blocks: blocks placed, over all groups.
        num_bytes: bytes placed.
    """

    transfer_id: str
    epoch: int
    payload: bytes
    num_blocks: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed; its blocks must not be read.

    Attributes:
        transfer_id: the transfer.
        epoch: the attempt.
        reason: the sender's own, or one of `payloads.RejectReason`.
        message: for people.
    """

    transfer_id: str
    epoch: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class LeaseExpired:
    """The sender gave no sign of life for a lease; its blocks must not be read.

    Attributes:
        transfer_id: the transfer.
        epoch: the attempt.
    """

    transfer_id: str
    epoch: int


ReceiverEvent = Arrived | Committed | Failed | LeaseExpired
