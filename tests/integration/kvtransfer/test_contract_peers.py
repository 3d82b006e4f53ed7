"""What every transport must do: peers that come, go and come again."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from kvtransfer.errors import (
    ClosedError,
    ReceiverGoneError,
    RejectedError,
    StoppedError,
    TransportUnavailableError,
)
from kvtransfer.events import Failed
from kvtransfer.receiver import Receiver
from tests.integration.kvtransfer.rig import LEASE_S, Rig, wait_until


def test_another_incarnation_is_refused(rig: Rig) -> None:
    rig.receiver.expect("t", 1, [[1, 2], []], LEASE_S)
    before = dataclasses.replace(rig.receiver.peer, incarnation="r0")
    transfer = rig.make_sender().sender.begin(before, "t", 1, [[1, 2], []], LEASE_S)
    transfer.push(0, 0, [0, 1])
    with pytest.raises(RejectedError, match="WRONG_INCARNATION"):
        transfer.done.result(5)
    assert rig.untouched([1, 2])
    assert rig.receiver.drops["wrong_incarnation"] >= 1


def test_closing_the_sender_fails_what_is_under_way(rig: Rig) -> None:
    sender = rig.make_sender()
    rig.receiver.expect("t", 1, [[1, 2], []], LEASE_S)
    transfer = sender.begin(rig.receiver, "t", 1, [[1, 2], []])
    transfer.push(0, 0, [0])
    wait_until(lambda: bool(rig.events))
    sender.close()
    with pytest.raises(ClosedError):
        transfer.done.result(0)
    outcome = rig.await_outcome()
    assert isinstance(outcome, Failed)
    assert outcome.reason == "SENDER_CLOSED"
    with pytest.raises(ClosedError):
        sender.begin(rig.receiver, "t2", 1, [[1, 2], []])
    assert rig.receiver.release("t").result(5) is None


def test_closing_the_receiver_ends_transfers_and_releases(rig: Rig) -> None:
    sender = rig.make_sender()
    rig.receiver.expect("t", 1, [[1, 2], []], LEASE_S)
    transfer = sender.begin(rig.receiver, "t", 1, [[1, 2], []])
    transfer.push(0, 0, [0])
    wait_until(lambda: bool(rig.events))
    rig.receiver.close()
    with pytest.raises((StoppedError, ReceiverGoneError)):
        transfer.done.result(5)
    with pytest.raises(ClosedError):
        rig.receiver.release("t").result(0)
    with pytest.raises(ClosedError):
        rig.receiver.expect("t", 2, [[1], []], LEASE_S)


def test_a_peer_reborn_at_the_same_address_is_another_peer(rig: Rig) -> None:
    sender = rig.make_sender()
    old = rig.receiver
    old.expect("t", 1, [[1, 2], []], LEASE_S)
    transfer = sender.begin(old, "t", 1, [[1, 2], []])
    transfer.push(0, 0, [0])
    wait_until(lambda: bool(rig.events))
    old.close()
    with pytest.raises((StoppedError, ReceiverGoneError)):
        transfer.done.result(5)
    reborn = rig.make_receiver(incarnation="r2", bind=old.peer.endpoint)
    assert reborn.peer.endpoint == old.peer.endpoint
    reborn.expect("t", 1, [[1, 2], []], LEASE_S)
    if rig.setup.is_direct:
        with pytest.raises(TransportUnavailableError):
            sender.begin(old, "t", 1, [[1, 2], []], 1.0)
    else:
        stale = sender.begin(old, "t", 1, [[1, 2], []], 1.0)
        with pytest.raises(RejectedError, match="WRONG_INCARNATION"):
            stale.done.result(5)
    assert rig.untouched([1, 2])
    fresh = sender.begin(reborn, "t", 1, [[1, 2], []])
    fresh.push(0, 0, [0, 1])
    fresh.commit(b"")
    fresh.done.result(5)
    assert np.array_equal(rig.pools[0][1:3], sender.pools[0][:2])


def test_forget_ends_the_transfers_of_a_peer(rig: Rig) -> None:
    sender = rig.make_sender()
    rig.receiver.expect("t", 1, [[1, 2], []], LEASE_S)
    transfer = sender.begin(rig.receiver, "t", 1, [[1, 2], []])
    sender.sender.forget("decode-0", "another")
    sender.sender.forget("nobody", "r1")
    time.sleep(0.05)
    assert not transfer.done.done()
    sender.sender.forget("decode-0", "r1")
    with pytest.raises(ReceiverGoneError, match="forgotten"):
        transfer.done.result(5)


def test_one_receiver_serves_two_incarnations_of_one_sender(rig: Rig) -> None:
    def hand_over(receiver: Receiver, name: str) -> None:
        sender = rig.make_sender()
        receiver.expect(name, 1, [[1, 2], []], LEASE_S)
        transfer = sender.begin(receiver, name, 1, [[1, 2], []])
        transfer.push(0, 0, [0, 1])
        transfer.commit(b"")
        transfer.done.result(5)
        sender.close()

    hand_over(rig.receiver, "before")
    hand_over(rig.receiver, "after")
