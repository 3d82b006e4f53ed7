"""Frames that are lost, late, doubled or changed, by way of the fake transport."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from kvtransfer.errors import (
    InvalidTransferError,
    LeaseExpiredError,
    ReceiverGoneError,
    RejectedError,
    StoppedError,
)
from kvtransfer.events import Committed, Failed
from kvtransfer.fake import Action, Faults, faults
from kvtransfer.frames import Kind
from kvtransfer.outbound import OutboundTransfer
from tests.integration.kvtransfer.pools import Setup
from tests.integration.kvtransfer.rig import LEASE_S, SIZES, Rig, wait_until

IDS = [[1, 2, 3, 4], []]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(Setup("fake"))
    yield made
    made.close()


@pytest.fixture
def wrong(rig: Rig) -> Faults:
    return faults(rig.receiver.peer.endpoint)


def begin(rig: Rig, lease_s: float = LEASE_S) -> OutboundTransfer:
    rig.receiver.expect("t", 1, IDS, lease_s)
    return rig.make_sender().begin(rig.receiver, "t", 1, IDS, lease_s)


def push_all(transfer: OutboundTransfer) -> None:
    transfer.push(0, 0, [5, 6, 7, 8])
    transfer.commit(b"")


@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.GRANT, Kind.COMMIT, Kind.ACK])
def test_a_lost_control_frame_is_sent_again(rig: Rig, wrong: Faults, kind: Kind) -> None:
    wrong.add(Action.DROP, kind, count=2)
    transfer = begin(rig, 1.0)
    push_all(transfer)
    assert transfer.done.result(5).blocks == 4
    assert rig.outcomes == [Committed("t", 1, b"", 4, 4 * SIZES[0][0])]


@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.GRANT, Kind.BLOCK, Kind.COMMIT, Kind.ACK])
def test_a_doubled_frame_changes_nothing(rig: Rig, wrong: Faults, kind: Kind) -> None:
    wrong.add(Action.DUPLICATE, kind, count=10)
    transfer = begin(rig)
    push_all(transfer)
    assert transfer.done.result(5).blocks == 4
    assert rig.outcomes == [Committed("t", 1, b"", 4, 4 * SIZES[0][0])]
    assert rig.receiver.drops.get("duplicate", 0) == (4 if kind is Kind.BLOCK else 0)


@pytest.mark.parametrize("action", [Action.DROP, Action.CORRUPT, Action.DELAY])
def test_a_block_that_does_not_arrive_refuses_the_commit(rig: Rig, wrong: Faults, action: Action) -> None:
    wrong.add(action, Kind.BLOCK, skip=2, delay_s=0.3)
    transfer = begin(rig)
    push_all(transfer)
    with pytest.raises(RejectedError, match="COUNT_MISMATCH"):
        transfer.done.result(5)
    outcome = rig.await_outcome()
    assert isinstance(outcome, Failed)
    assert outcome.message.startswith("4 blocks announced, 3 arrived")
    time.sleep(0.4)
    assert rig.untouched([3])  # the late one came too late


def test_a_late_block_of_an_old_epoch_never_lands(rig: Rig, wrong: Faults) -> None:
    wrong.add(Action.DELAY, Kind.BLOCK, delay_s=0.3)
    old = begin(rig)
    old.push(0, 0, [5])
    time.sleep(0.05)
    rig.receiver.expect("t", 2, IDS, LEASE_S)
    sender = rig.make_sender()
    new = sender.begin(rig.receiver, "t", 2, IDS)
    new.push(0, 0, [30, 31, 32, 33])
    new.commit(b"")
    new.done.result(5)
    with pytest.raises(StoppedError):
        old.done.result(5)
    wait_until(lambda: rig.receiver.drops.get("stale_epoch") == 1)
    assert np.array_equal(rig.pools[0][1:5], sender.pools[0][30:34])


def test_a_sender_without_room_gives_up_within_a_lease(rig: Rig, wrong: Faults) -> None:
    receiver = rig.make_receiver(window_bytes=1)
    faults(receiver.peer.endpoint).add(Action.DROP, Kind.BLOCK, count=1000)
    ids = [list(range(8)), []]
    receiver.expect("t", 1, ids, 0.5)
    transfer = rig.make_sender().begin(receiver, "t", 1, ids, 0.5)
    transfer.push(0, 0, list(range(8)))
    start = time.monotonic()
    with pytest.raises(LeaseExpiredError, match="no room"):
        transfer.done.result(5)
    assert time.monotonic() - start < 1.5
    assert isinstance(rig.await_outcome(), Failed)


def test_a_lost_stop_is_sent_again() -> None:
    rig = Rig(Setup("fake"))
    wrong = faults(rig.receiver.peer.endpoint)
    wrong.add(Action.DROP, Kind.STOP)
    transfer = begin(rig, 1.0)
    transfer.push(0, 0, [1])
    wait_until(lambda: bool(rig.events))
    rig.receiver.release("t").result(5)
    # STOP was lost; the next renewal is refused instead.
    with pytest.raises(RejectedError, match="UNKNOWN_TRANSFER"):
        transfer.done.result(5)
    rig.close()


def test_silence_ends_the_transfer_on_both_sides(rig: Rig, wrong: Faults) -> None:
    transfer = begin(rig, 0.5)
    transfer.push(0, 0, [1])
    wait_until(lambda: bool(rig.events))
    wrong.add(Action.DROP, count=1_000_000)
    with pytest.raises(LeaseExpiredError):
        transfer.done.result(5)
    assert type(rig.await_outcome()).__name__ == "LeaseExpired"
    wrong.clear()
    rig.receiver.expect("t", 2, IDS, 0.5)
    again = rig.make_sender().begin(rig.receiver, "t", 2, IDS, 0.5)
    push_all(again)
    assert again.done.result(5).blocks == 4


def test_a_killed_receiver_is_noticed_at_once(rig: Rig, wrong: Faults) -> None:
    transfer = begin(rig)
    transfer.push(0, 0, [1])
    wait_until(lambda: bool(rig.events))
    wrong.kill()
    with pytest.raises(ReceiverGoneError):
        transfer.done.result(1)
    reborn = rig.make_receiver(incarnation="r2", bind=rig.receiver.peer.endpoint)
    reborn.expect("t", 1, IDS, LEASE_S)
    again = rig.make_sender().begin(reborn, "t", 1, IDS)
    push_all(again)
    assert again.done.result(5).blocks == 4


def test_an_endpoint_is_taken_once(rig: Rig) -> None:
    with pytest.raises(InvalidTransferError, match="taken"):
        rig.make_receiver(bind=rig.receiver.peer.endpoint)
