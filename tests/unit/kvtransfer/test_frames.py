from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.errors import CorruptFrameError, FrameError, InvalidTransferError, MalformedFrameError
from kvtransfer.frames import (
    HEADER_BYTES,
    MAX_INCARNATION_BYTES,
    MAX_TRANSFER_ID_BYTES,
    Header,
    Kind,
    decode,
    encode,
    parse,
)
from kvtransfer.payloads import OpenFacts, decode_reason, encode_reason

U32 = st.integers(0, 2**32 - 1)


def ids(limit: int) -> st.SearchStrategy[str]:
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
    return text.filter(lambda value: len(value.encode()) <= limit)


headers = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    transfer_id=ids(MAX_TRANSFER_ID_BYTES),
    epoch=U32,
    incarnation=ids(MAX_INCARNATION_BYTES),
    group=st.integers(0, 2**16 - 1),
    first_index=U32,
    count=U32,
    sequence=U32,
)


@given(headers, st.binary(max_size=200))
def test_what_is_encoded_is_decoded(header: Header, payload: bytes) -> None:
    raw = encode(header, payload)
    assert len(raw) == HEADER_BYTES == 144
    assert decode(raw, payload) == header
    assert decode(memoryview(raw), memoryview(payload)) == header


@given(headers, st.binary(min_size=1, max_size=200), st.data())
def test_no_single_bit_can_flip_unnoticed(header: Header, payload: bytes, data: st.DataObject) -> None:
    raw = encode(header, payload)
    frame = bytearray(raw + payload)
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        decode(bytes(frame[:HEADER_BYTES]), bytes(frame[HEADER_BYTES:]))


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_junk_is_a_frame_error(raw: bytes, payload: bytes) -> None:
    with pytest.raises(MalformedFrameError):
        decode(raw, payload)


@given(st.binary(min_size=HEADER_BYTES - 6, max_size=HEADER_BYTES - 6), st.sampled_from(Kind))
def test_junk_behind_a_good_start_is_a_frame_error(rest: bytes, kind: Kind) -> None:
    raw = b"BTKV\x01" + bytes([kind]) + rest
    with pytest.raises(FrameError):
        decode(raw, b"")


def test_another_version_or_kind_is_named() -> None:
    raw = encode(Header(Kind.RENEW, "t", 1, "i"))
    with pytest.raises(MalformedFrameError, match="version 2, this side speaks 1"):
        parse(raw[:4] + b"\2" + raw[5:])
    with pytest.raises(MalformedFrameError, match="unknown kind 99"):
        parse(raw[:5] + bytes([99]) + raw[6:])


def test_a_changed_payload_is_corrupt_and_a_cut_one_malformed() -> None:
    raw = encode(Header(Kind.BLOCK, "t", 1, "i"), b"payload")
    with pytest.raises(CorruptFrameError):
        decode(raw, b"pAyload")
    with pytest.raises(MalformedFrameError, match="payload has 6 bytes"):
        decode(raw, b"payloa")


@pytest.mark.parametrize(
    "header",
    [
        Header(Kind.OPEN, "", 1, "i"),
        Header(Kind.OPEN, "x" * 65, 1, "i"),
        Header(Kind.OPEN, "ü" * 33, 1, "i"),
        Header(Kind.OPEN, "a\0b", 1, "i"),
        Header(Kind.OPEN, "t", 1, "i" * 41),
        Header(Kind.OPEN, "t", -1, "i"),
        Header(Kind.OPEN, "t", 2**32, "i"),
        Header(Kind.OPEN, "t", 1, "i", group=2**16),
    ],
)
def test_what_does_not_fit_is_refused(header: Header) -> None:
    with pytest.raises(InvalidTransferError):
        encode(header)


@given(U32, st.sampled_from(["zmq_tcp", "shared_memory", ""]), st.sampled_from(["", "baton-alive-1-ab"]))
def test_open_facts_come_back(lease_ms: int, transport: str, liveness: str) -> None:
    facts = OpenFacts(lease_ms, transport, liveness)
    assert OpenFacts.decode(facts.encode()) == facts


@given(st.binary(max_size=200))
def test_any_open_payload_is_read_or_refused(payload: bytes) -> None:
    try:
        OpenFacts.decode(payload)
    except MalformedFrameError:
        assert len(payload) != len(OpenFacts(0, "").encode())


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=2000))
def test_reasons_come_back_cut(message: str) -> None:
    reason, read = decode_reason(encode_reason("LEASE_EXPIRED", message))
    assert reason == "LEASE_EXPIRED"
    assert read.rstrip("\ufffd") == message.encode()[:1024].decode(errors="ignore").rstrip("\ufffd")


@given(st.binary(max_size=1200))
def test_any_reason_is_read_or_refused(payload: bytes) -> None:
    try:
        reason, message = decode_reason(payload)
        assert len(message) <= 1024
        assert len(reason) <= 32
    except MalformedFrameError:
        assert not 32 <= len(payload) <= 32 + 1024
