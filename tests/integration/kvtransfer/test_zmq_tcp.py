"""What only frames over ZeroMQ can go through: hostile bytes, slow readers, broken payloads."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from kvtransfer.errors import InvalidTransferError
from kvtransfer.events import Committed, Failed
from kvtransfer.frames import HEADER_BYTES, Header, Kind, decode, encode
from kvtransfer.payloads import OpenFacts
from kvtransfer.receiver import Receiver
from tests.integration.kvtransfer.pools import Setup
from tests.integration.kvtransfer.rig import LEASE_S, SIZES, Rig, paused, wait_until

BLOCK_BYTES = SIZES[0][0]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(Setup("zmq_tcp"))
    yield made
    made.close()


@pytest.fixture
def raw(rig: Rig) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVTIMEO, 5000)
    socket.connect(rig.receiver.peer.endpoint)
    yield socket
    context.destroy(linger=0)


def send(socket: zmq.Socket[bytes], kind: Kind, payload: bytes = b"", **fields: int) -> None:
    header = Header(kind, "raw", 1, "r1", **fields)
    socket.send_multipart([encode(header, payload), payload])


def receive(socket: zmq.Socket[bytes]) -> Kind:
    header, payload = socket.recv_multipart()
    return decode(header, payload).kind


def hand_over(rig: Rig, receiver: Receiver, name: str) -> None:
    sender = rig.make_sender()
    receiver.expect(name, 1, [[1, 2], []], LEASE_S)
    transfer = sender.begin(receiver, name, 1, [[1, 2], []])
    transfer.push(0, 0, [0, 1])
    transfer.commit(b"")
    transfer.done.result(5)
    assert np.array_equal(rig.pools[0][1:3], sender.pools[0][:2])


def test_a_corrupt_block_is_dropped_and_the_commit_refused(rig: Rig, raw: zmq.Socket[bytes]) -> None:
    rig.receiver.expect("raw", 1, [[1, 2], []], LEASE_S)
    send(raw, Kind.OPEN, OpenFacts(1000, "zmq_tcp").encode(), sequence=1)
    assert receive(raw) is Kind.GRANT
    block = bytes(BLOCK_BYTES)
    send(raw, Kind.BLOCK, block, count=1)
    header = Header(Kind.BLOCK, "raw", 1, "r1", first_index=1, count=1)
    raw.send_multipart([encode(header, block), b"\1" + block[1:]])
    send(raw, Kind.COMMIT, count=2)
    assert receive(raw) is Kind.REJECT
    assert rig.await_outcome() == Failed(
        "raw", 1, "COUNT_MISMATCH", "2 blocks announced, 1 arrived, 1 corrupt"
    )
    assert rig.receiver.drops == {"corrupt": 1}
    assert rig.untouched([2])


def test_room_lost_to_corrupt_blocks_is_given_back(rig: Rig, raw: zmq.Socket[bytes]) -> None:
    receiver = rig.make_receiver(window_bytes=1)
    raw.connect(receiver.peer.endpoint)
    raw.disconnect(rig.receiver.peer.endpoint)
    receiver.expect("raw", 1, [[1, 2], []], LEASE_S)
    send(raw, Kind.OPEN, OpenFacts(1000, "zmq_tcp").encode(), sequence=1)
    header, _ = raw.recv_multipart()
    assert decode(header, b"").count == 4
    block = bytes(BLOCK_BYTES)
    frame = encode(Header(Kind.BLOCK, "raw", 1, "r1", count=1), block)
    raw.send_multipart([frame, b"\1" + block[1:]])
    header, _ = raw.recv_multipart()
    assert decode(header, b"").count == 5


@pytest.mark.parametrize(
    ("kind", "payload", "fields"),
    [
        (Kind.OPEN, b"short", {}),
        (Kind.FAIL, b"short", {}),
        (Kind.BLOCK, bytes(BLOCK_BYTES), {"count": 1, "first_index": 2}),
        (Kind.BLOCK, bytes(BLOCK_BYTES), {"count": 1, "first_index": (1 << 32) - 1}),
        (Kind.BLOCK, bytes(BLOCK_BYTES), {"count": 1, "group": 2}),
        (Kind.BLOCK, bytes(BLOCK_BYTES), {"count": 0}),
        (Kind.BLOCK, bytes(BLOCK_BYTES), {"count": 2}),
        (Kind.BLOCK, bytes(BLOCK_BYTES - 1), {"count": 1}),
        (Kind.BLOCK, bytes(BLOCK_BYTES + 1), {"count": 1}),
        (Kind.PLACED, b"", {"count": 2}),
        (Kind.GRANT, b"", {"count": 2}),
    ],
)
def test_frames_out_of_range_are_dropped(
    rig: Rig, raw: zmq.Socket[bytes], kind: Kind, payload: bytes, fields: dict[str, int]
) -> None:
    rig.receiver.expect("raw", 1, [[1, 2], []], LEASE_S)
    if kind is not Kind.OPEN:
        send(raw, Kind.OPEN, OpenFacts(1000, "zmq_tcp").encode(), sequence=1)
        assert receive(raw) is Kind.GRANT
    send(raw, kind, payload, **fields)
    wait_until(lambda: rig.receiver.drops == {"malformed": 1})
    assert rig.untouched(range(40))
    assert rig.events == []
    send(raw, Kind.OPEN, OpenFacts(1000, "zmq_tcp").encode(), sequence=2)
    assert receive(raw) is Kind.GRANT
    send(raw, Kind.BLOCK, bytes(BLOCK_BYTES), count=1)
    send(raw, Kind.COMMIT, count=1)
    assert receive(raw) is Kind.ACK
    assert rig.await_outcome() == Committed("raw", 1, b"", 1, BLOCK_BYTES)


@pytest.mark.parametrize("facts", [OpenFacts(1000, "shared_memory", "x"), OpenFacts(1000, "teleport")])
def test_a_transport_that_was_not_offered_is_refused(
    rig: Rig, raw: zmq.Socket[bytes], facts: OpenFacts
) -> None:
    rig.receiver.expect("raw", 1, [[1, 2], []], LEASE_S)
    send(raw, Kind.OPEN, facts.encode())
    assert receive(raw) is Kind.REJECT


def test_a_direct_writer_must_name_a_liveness_file() -> None:
    rig = Rig(Setup("shared_memory"))
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.connect(rig.receiver.peer.endpoint)
    rig.receiver.expect("raw", 1, [[1, 2], []], LEASE_S)
    for name in ("", "../../etc/passwd", "baton-/x", "other"):
        send(socket, Kind.OPEN, OpenFacts(1000, "shared_memory", name).encode())
    wait_until(lambda: rig.receiver.drops == {"malformed": 4})
    context.destroy(linger=0)
    rig.close()


def test_junk_does_not_stop_the_receiver(rig: Rig, raw: zmq.Socket[bytes]) -> None:
    rig.receiver.expect("raw", 1, [[1, 2], []], LEASE_S)
    good = encode(Header(Kind.OPEN, "raw", 1, "r1"), b"")
    messages = [
        [b""],
        [b"", b""],
        [b"x" * HEADER_BYTES, b""],
        [good],
        [good, b"", b""],
        [good[:-1], b""],
        [good + b"x", b""],
        [b"BTKV" + bytes([99]) + good[5:], b""],
        [good[:5] + bytes([99]) + good[6:], b""],
        *([secrets.token_bytes(HEADER_BYTES), secrets.token_bytes(50)] for _ in range(50)),
    ]
    for parts in messages:
        raw.send_multipart(parts)
    wait_until(lambda: rig.receiver.drops.get("malformed") == len(messages))
    hand_over(rig, rig.receiver, "after")


def test_a_message_that_is_too_large_breaks_only_its_own_connection(rig: Rig, raw: zmq.Socket[bytes]) -> None:
    raw.send_multipart([b"x", bytes(8 << 20)])
    time.sleep(0.1)
    hand_over(rig, rig.receiver, "after")
    assert rig.receiver.drops == {}


def test_a_slow_receiver_bounds_what_is_under_way(rig: Rig) -> None:
    receiver = rig.make_receiver(window_bytes=8 * BLOCK_BYTES)
    sender = rig.make_sender()
    ids = [list(range(40)), []]
    receiver.expect("t", 1, ids, LEASE_S)
    transfer = sender.begin(receiver, "t", 1, ids)
    wait_until(lambda: transfer._limit == 8)
    with paused(receiver):
        transfer.push(0, 0, list(range(40)))
        transfer.commit(b"")
        wait_until(lambda: transfer._num_sent == 8)
        time.sleep(0.1)
        assert transfer._num_sent == 8
    assert transfer.done.result(5).blocks == 40
    assert np.array_equal(rig.pools[0], sender.pools[0])


def test_addresses_that_cannot_be_bound(rig: Rig) -> None:
    for bind in (rig.receiver.peer.endpoint, "tcp://0.0.0.0:0", "tcp://no such host:0"):
        with pytest.raises(InvalidTransferError, match="bind"):
            rig.make_receiver(bind=bind)


def test_the_advertised_host_is_what_peers_are_told() -> None:
    rig = Rig(Setup("zmq_tcp"))
    region_owner = rig.receiver
    receiver = Receiver(
        "decode-9",
        "r1",
        list(region_owner._regions),
        bind="tcp://0.0.0.0:0",
        advertise_host="127.0.0.1",
        transports=["zmq_tcp"],
        on_event=rig.events.append,
    )
    assert receiver.peer.endpoint.startswith("tcp://127.0.0.1:")
    hand_over(rig, receiver, "t")
    receiver.close()
    rig.close()
