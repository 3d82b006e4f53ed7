"""The sender's lease, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kvtransfer.errors import InvalidTransferError, LeaseExpiredError, ReceiverGoneError, TransferError
from kvtransfer.frames import Header, Kind
from kvtransfer.outbound import OutboundTransfer

LEASE_S = 10.0


class Wire:
    """Stands where a `PeerLink` does; keeps what is sent, runs what is posted at once."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[Header] = []
        self.removed = False
        self.writer = SimpleNamespace(write=self.write, piece_blocks=lambda num: -(-num // 2), batch_blocks=2)
        self.written: list[tuple[int, tuple[int, ...], tuple[int, ...], range | None]] = []
        self.sources = [SimpleNamespace(num_blocks=4, block_bytes=8)]
        self.peer = SimpleNamespace(incarnation="r1", endpoint="tcp://host:1")
        self.transport, self.liveness_name = "shared_memory", "baton-alive-1-aa"
        self.loop = self.copier = self

    def write(self, *batch: Any) -> int:
        self.written.append(batch)
        return 8 * len(batch[1])

    def receiver_lives(self) -> bool:
        return True

    def clock(self) -> float:
        return self.now

    def post(self, command: Callable[[], object]) -> None:
        command()

    submit = run = post

    def send(self, header: Header, payload: bytes = b"") -> None:
        self.sent.append(header)

    def remove(self, transfer: OutboundTransfer) -> None:
        self.removed = True


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def transfer(wire: Wire) -> OutboundTransfer:
    stand_in: Any = wire
    made = OutboundTransfer(stand_in, "t", 1, [[0, 1, 2, 3]], LEASE_S)
    made.start()
    return made


def answer(transfer: OutboundTransfer, kind: Kind, sequence: int) -> None:
    transfer.handle(Header(kind, "t", 1, "r1", count=8, sequence=sequence), b"")


def test_the_lease_counts_from_when_the_renewal_was_sent(wire: Wire, transfer: OutboundTransfer) -> None:
    gate: Any = transfer._gate
    assert gate.deadline == 0.0
    wire.now = 103.0
    transfer.tick(wire.now)
    assert [header.kind for header in wire.sent] == [Kind.OPEN, Kind.OPEN]
    wire.now = 104.0
    answer(transfer, Kind.GRANT, 1)
    assert gate.deadline == 100.0 + 0.8 * LEASE_S
    answer(transfer, Kind.GRANT, 2)
    assert gate.deadline == 103.0 + 0.8 * LEASE_S
    answer(transfer, Kind.GRANT, 1)
    answer(transfer, Kind.GRANT, 99)
    assert gate.deadline == 103.0 + 0.8 * LEASE_S


def test_nothing_is_written_before_the_grant_nor_after_the_lease(
    wire: Wire, transfer: OutboundTransfer
) -> None:
    transfer.push(0, 0, [0])
    answer(transfer, Kind.WAIT, 1)
    assert [header.kind for header in wire.sent] == [Kind.OPEN]
    answer(transfer, Kind.GRANT, 1)
    assert [header.kind for header in wire.sent] == [Kind.OPEN, Kind.PLACED]
    wire.now = 108.0
    transfer.push(0, 1, [1])
    assert [header.kind for header in wire.sent] == [Kind.OPEN, Kind.PLACED, Kind.FAIL]
    with pytest.raises(LeaseExpiredError):
        transfer.done.result(0)


def test_a_batch_is_no_larger_than_the_writer_takes(wire: Wire, transfer: OutboundTransfer) -> None:
    ready: list[int] = []
    answer(transfer, Kind.GRANT, 1)
    transfer.push(0, 0, [3, 2, 1, 0], ready=lambda: ready.append(len(wire.written)))
    assert wire.written == [(0, (0, 1), (3, 2), None), (0, (2, 3), (1, 0), None)]
    assert ready == [0, 1]  # before what it is for
    assert [(header.first_index, header.count) for header in wire.sent[1:]] == [(0, 2), (2, 2)]


def test_a_block_is_placed_when_all_its_parts_are(wire: Wire, transfer: OutboundTransfer) -> None:
    answer(transfer, Kind.GRANT, 1)
    transfer.push(0, 0, [3, 2], part=range(6))
    with pytest.raises(InvalidTransferError, match="only a part"):
        transfer.commit(b"")
    transfer.push(0, 0, [3], part=range(6, 8))
    transfer.push(0, 2, [1])
    transfer.push(0, 1, [2], part=range(6, 8))
    transfer.commit(b"")
    assert wire.written == [
        (0, (0,), (3,), range(6)),
        (0, (1,), (2,), range(6)),
        (0, (0,), (3,), range(6, 8)),
        (0, (2,), (1,), None),
        (0, (1,), (2,), range(6, 8)),
    ]
    assert [(header.kind, header.first_index, header.count) for header in wire.sent[1:]] == [
        (Kind.PLACED, 0, 1),
        (Kind.PLACED, 2, 1),
        (Kind.PLACED, 1, 1),
        (Kind.COMMIT, 0, 3),
    ]


@pytest.mark.parametrize("part", [range(5, 8), range(7, 9), range(6, 6), range(8)])
def test_parts_follow_each_other_and_stay_inside_the_block(
    wire: Wire, transfer: OutboundTransfer, part: range
) -> None:
    answer(transfer, Kind.GRANT, 1)
    transfer.push(0, 0, [3], part=range(6))
    with pytest.raises(InvalidTransferError, match=r"part|pushed before"):
        transfer.push(0, 0, [3], part=part)
    assert len(wire.written) == 1


def test_blocks_that_are_never_computed_fail_the_transfer(wire: Wire, transfer: OutboundTransfer) -> None:
    def never() -> None:
        raise RuntimeError("the GPU is lost")

    answer(transfer, Kind.GRANT, 1)
    transfer.push(0, 0, [0], ready=never)
    with pytest.raises(TransferError, match="the GPU is lost"):
        transfer.done.result(0)
    assert not wire.written


def test_it_renews_often_enough_and_commits_again(wire: Wire, transfer: OutboundTransfer) -> None:
    answer(transfer, Kind.GRANT, 1)
    transfer.commit(b"")
    for _ in range(4):
        wire.now += LEASE_S / 5
        transfer.tick(wire.now)
        answer(transfer, Kind.GRANT, wire.sent[-1].sequence)
    assert [header.kind for header in wire.sent] == [Kind.OPEN] + [Kind.COMMIT] * 5
    answer(transfer, Kind.ACK, 0)
    assert transfer.done.result(0).blocks == 0


def test_silence_from_the_start_is_a_receiver_that_is_gone(wire: Wire, transfer: OutboundTransfer) -> None:
    wire.now = 107.9
    transfer.tick(wire.now)
    assert not transfer.done.done()
    wire.now = 108.0
    transfer.tick(wire.now)
    with pytest.raises(ReceiverGoneError):
        transfer.done.result(0)


@pytest.fixture
def in_place(wire: Wire) -> OutboundTransfer:
    stand_in: Any = wire
    made = OutboundTransfer(stand_in, "t", 1, [[0, 1, 2, 3]], LEASE_S, in_place=True)
    made.start()
    return made


def kinds(wire: Wire) -> list[Kind]:
    return [header.kind for header in wire.sent]


def test_computing_in_place_waits_for_the_grant(wire: Wire, in_place: OutboundTransfer) -> None:
    assert not in_place.writable()
    answer(in_place, Kind.WAIT, 1)
    assert not in_place.opened.done()
    answer(in_place, Kind.GRANT, 1)
    assert in_place.opened.result(0) is None
    assert in_place.writable()
    wire.now = 108.0
    assert not in_place.writable()


def test_the_receiver_hears_of_the_end_when_nothing_computes_any_more(
    wire: Wire, in_place: OutboundTransfer
) -> None:
    answer(in_place, Kind.GRANT, 1)
    in_place.fail("CANCELLED", "")
    assert not in_place.writable()
    wire.now = 102.0
    in_place.tick(wire.now)
    assert kinds(wire) == [Kind.OPEN, Kind.RENEW]
    in_place.settle()
    assert kinds(wire) == [Kind.OPEN, Kind.RENEW, Kind.FAIL]
    wire.now = 104.0
    in_place.tick(wire.now)
    assert kinds(wire)[3:] == [Kind.FAIL]


def test_a_stopped_computation_is_done_at_once_and_gone_when_settled(
    wire: Wire, in_place: OutboundTransfer
) -> None:
    answer(in_place, Kind.GRANT, 1)
    answer(in_place, Kind.STOP, 0)
    with pytest.raises(TransferError):
        in_place.done.result(0)
    stopped: list[str] = []
    in_place.when_settled(lambda: stopped.append("answered"))
    assert not stopped
    assert not wire.removed
    in_place.settle()
    assert stopped == ["answered"]
    assert wire.removed
    in_place.settle()
    in_place.when_settled(lambda: stopped.append("at once"))
    assert stopped == ["answered", "at once"]


def test_without_a_grant_opened_says_why(wire: Wire, in_place: OutboundTransfer) -> None:
    wire.now = 108.0
    in_place.tick(wire.now)
    with pytest.raises(ReceiverGoneError):
        in_place.opened.result(0)
