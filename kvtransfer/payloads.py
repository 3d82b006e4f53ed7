"""Payloads of control frames."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from kvtransfer.errors import MalformedFrameError
from kvtransfer.frames import Payload

MAX_REASON_BYTES = 32
MAX_MESSAGE_BYTES = 1024

_OPEN = struct.Struct("<I16s96s")
_REASON = struct.Struct("<32s")
_TAKEN_AT = struct.Struct("<Q")


class RejectReason(enum.StrEnum):
    """Why a receiver refuses a transfer, or reports it failed."""

    WRONG_INCARNATION = "WRONG_INCARNATION"
    UNKNOWN_TRANSFER = "UNKNOWN_TRANSFER"
    STALE_EPOCH = "STALE_EPOCH"
    BUSY = "BUSY"
    LEASE_MISMATCH = "LEASE_MISMATCH"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    TRANSPORT_REFUSED = "TRANSPORT_REFUSED"
    COUNT_MISMATCH = "COUNT_MISMATCH"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class OpenFacts:
    """What a sender says of itself in OPEN.

    Attributes:
        lease_ms: the lease it counts with, milliseconds; must not exceed the receiver's.
        transport: how it will write, at most 16 bytes.
        liveness: name of its liveness file; empty if it does not write directly.
    """

    lease_ms: int
    transport: str
    liveness: str = ""

    def encode(self) -> bytes:
        """Pack for OPEN."""
        return _OPEN.pack(self.lease_ms, self.transport.encode(), self.liveness.encode())

    @classmethod
    def decode(cls, payload: Payload) -> OpenFacts:
        """Unpack from OPEN.

        Raises:
            MalformedFrameError: wrong size or text.
        """
        if len(payload) != _OPEN.size:
            raise MalformedFrameError(f"OPEN has {len(payload)} bytes, not {_OPEN.size}")
        lease_ms, transport, liveness = _OPEN.unpack(payload)
        return cls(lease_ms, _text(transport), _text(liveness))


def encode_taken_at(now_ns: int) -> bytes:
    """Pack when COMMIT was taken, for ACK; nanoseconds of time.monotonic_ns()."""
    return _TAKEN_AT.pack(now_ns)


def taken_after_s(payload: Payload, since_ns: int, until_ns: int) -> float:
    """Return the seconds from `since_ns` until COMMIT was taken, as ACK says.

    Until `until_ns`, where it does not say, or the two ends evidently do not share a clock.
    """
    taken_ns = until_ns
    if len(payload) == _TAKEN_AT.size:
        (taken_ns,) = _TAKEN_AT.unpack(payload)
    if not since_ns <= taken_ns <= until_ns:
        taken_ns = until_ns
    return (taken_ns - since_ns) / 1e9


def encode_reason(reason: str, message: str) -> bytes:
    """Pack a reason (cut at 32 bytes) and a message for people (cut at 1024 bytes)."""
    return _REASON.pack(reason.encode()[:MAX_REASON_BYTES]) + message.encode()[:MAX_MESSAGE_BYTES]


def decode_reason(payload: Payload) -> tuple[str, str]:
    """Unpack reason and message.

    Raises:
        MalformedFrameError: too short or too long.
    """
    if not _REASON.size <= len(payload) <= _REASON.size + MAX_MESSAGE_BYTES:
        raise MalformedFrameError(f"a reason has {len(payload)} bytes")
    (reason,) = _REASON.unpack_from(payload)
    return _text(reason), bytes(payload[_REASON.size :]).decode(errors="replace")


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="replace")
