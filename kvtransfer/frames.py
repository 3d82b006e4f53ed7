"""The wire format: a fixed, versioned header, and a checksum over header and payload.

A frame is a header of `HEADER_BYTES` and a payload. Fields mean, by kind:

    sender -> receiver
    OPEN     asks to write; payload: `OpenFacts`; sequence: renewal number
    BLOCK    one block as payload, for (group, first_index); count: 1
    PLACED   count blocks from (group, first_index) on were written directly
    RENEW    sign of life; sequence: renewal number
    COMMIT   all is sent; count: distinct blocks, over all groups; payload: the caller's
    FAIL     given up; payload: reason and message
    STOPPED  answer to STOP: nothing of this epoch will be written any more

    receiver -> sender
    GRANT    may write; sequence: echoes the renewal; count: BLOCK frames allowed since OPEN
    WAIT     an older writer is being fenced off; sequence: echoes the renewal
    STOP     write no more
    ACK      answer to COMMIT and FAIL; payload: when COMMIT was taken, by this host's monotonic clock, to a
             sender of the same host; else nothing
    REJECT   refused; payload: reason and message
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

import xxhash

from kvtransfer.errors import CorruptFrameError, InvalidTransferError, MalformedFrameError

MAGIC = b"BTKV"
VERSION = 1
MAX_TRANSFER_ID_BYTES = 64
MAX_INCARNATION_BYTES = 40
MAX_CONTROL_BYTES = 1 << 20
MAX_U32 = (1 << 32) - 1

Payload = bytes | memoryview

# magic, version, kind, group, epoch, sequence, first_index, count, payload_bytes, transfer_id, incarnation
_FIELDS = struct.Struct("<4sBBHIIIIQ64s40s")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size


class Kind(enum.IntEnum):
    """What a frame says."""

    OPEN = 1
    BLOCK = 2
    PLACED = 3
    RENEW = 4
    COMMIT = 5
    FAIL = 6
    STOPPED = 7
    GRANT = 16
    WAIT = 17
    STOP = 18
    ACK = 19
    REJECT = 20


# A receiver that refuses one of these says so.
ANSWERED = (Kind.OPEN, Kind.RENEW, Kind.COMMIT, Kind.FAIL)


@dataclass(frozen=True, slots=True)
class Header:
    """Fields of a frame; see the module for what they mean by kind.

    Attributes:
        kind: what the frame says.
        transfer_id: 1 to 64 bytes of UTF-8, no NUL.
        epoch: the attempt.
        incarnation: the receiver's, in both directions; 1 to 40 bytes of UTF-8, no NUL.
    """

    kind: Kind
    transfer_id: str
    epoch: int
    incarnation: str
    group: int = 0
    first_index: int = 0
    count: int = 0
    sequence: int = 0


def encode(header: Header, payload: Payload = b"") -> bytes:
    """Pack a header for a payload.

    Returns:
        `HEADER_BYTES` bytes.
    Raises:
        InvalidTransferError: a field does not fit.
    """
    transfer_id = encode_id("transfer_id", header.transfer_id, MAX_TRANSFER_ID_BYTES)
    incarnation = encode_id("incarnation", header.incarnation, MAX_INCARNATION_BYTES)
    try:
        fields = _FIELDS.pack(
            MAGIC, VERSION, header.kind, header.group, header.epoch, header.sequence,
            header.first_index, header.count, memoryview(payload).nbytes, transfer_id, incarnation,
        )  # fmt: skip
    except struct.error as error:
        raise InvalidTransferError("header", f"{error} in {header}") from None
    return fields + _CHECKSUM.pack(_checksum(fields, payload))


def parse(raw: Payload) -> tuple[Header, int]:
    """Unpack a header; the payload is not looked at.

    Returns:
        The header, and the bytes that its payload must have.
    Raises:
        MalformedFrameError: wrong size, magic, version, kind or text.
    """
    if len(raw) != HEADER_BYTES:
        raise MalformedFrameError(f"header has {len(raw)} bytes, not {HEADER_BYTES}")
    (magic, version, kind, group, epoch, sequence, first_index, count, payload_bytes, transfer_id,
     incarnation) = _FIELDS.unpack_from(raw)  # fmt: skip
    if magic != MAGIC:
        raise MalformedFrameError("not a kvtransfer frame")
    if version != VERSION:
        raise MalformedFrameError(f"version {version}, this side speaks {VERSION}")
    try:
        known = Kind(kind)
    except ValueError:
        raise MalformedFrameError(f"unknown kind {kind}") from None
    header = Header(
        known,
        _decode_id("transfer_id", transfer_id),
        epoch,
        _decode_id("incarnation", incarnation),
        group,
        first_index,
        count,
        sequence,
    )
    return header, payload_bytes


def verify(raw: Payload, payload: Payload) -> None:
    """Check a payload, and the header before it, against the header's checksum.

    Raises:
        CorruptFrameError: it does not match.
    """
    (expected,) = _CHECKSUM.unpack_from(raw, _FIELDS.size)
    if _checksum(memoryview(raw)[: _FIELDS.size], payload) != expected:
        raise CorruptFrameError("checksum does not match")


def decode(raw: Payload, payload: Payload) -> Header:
    """Unpack and check a whole frame.

    Raises:
        MalformedFrameError: see `parse`; also a payload of another size.
        CorruptFrameError: the checksum does not match.
    """
    header, payload_bytes = parse(raw)
    if memoryview(payload).nbytes != payload_bytes:
        raise MalformedFrameError(f"payload has {len(payload)} bytes, the header says {payload_bytes}")
    verify(raw, payload)
    return header


def encode_id(field: str, text: str, limit: int) -> bytes:
    """Encode an id for a fixed field.

    Raises:
        InvalidTransferError: empty, too long, or with NUL.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise InvalidTransferError(field, "not valid Unicode") from None
    if not 1 <= len(encoded) <= limit or b"\0" in encoded:
        raise InvalidTransferError(field, f"must be 1 to {limit} bytes of UTF-8 without NUL")
    return encoded


def _decode_id(field: str, padded: bytes) -> str:
    text = padded.rstrip(b"\0")
    if not text or b"\0" in text:
        raise MalformedFrameError(f"{field} is empty or has NUL")
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise MalformedFrameError(f"{field} is not UTF-8") from None


def _checksum(fields: Payload, payload: Payload) -> int:
    # xxh3 runs at memory speed and lets go of the GIL; the header seeds it, so one sum covers both.
    return xxhash.xxh3_64_intdigest(payload, seed=xxhash.xxh3_64_intdigest(fields))
