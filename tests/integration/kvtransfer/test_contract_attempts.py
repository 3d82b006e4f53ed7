"""What every transport must do: epochs, leases, release."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from kvtransfer.errors import (
    LeaseExpiredError,
    ReceiverGoneError,
    RejectedError,
    StoppedError,
    TransferError,
)
from kvtransfer.events import Committed, Failed, LeaseExpired
from tests.integration.kvtransfer.rig import LEASE_S, SIZES, ManualClock, Rig, paused, wait_until


def test_release_does_not_wait_for_blocks_that_are_being_computed(rig: Rig) -> None:
    computed = threading.Event()
    rig.receiver.expect("t", 1, [[1, 2, 3], []], LEASE_S)
    transfer = rig.make_sender().begin(rig.receiver, "t", 1, [[1, 2, 3], []])
    transfer.push(0, 0, [4])
    wait_until(lambda: not rig.untouched([1]))
    transfer.push(0, 1, [5, 6], ready=computed.wait)
    try:
        assert rig.receiver.release("t").result(5) is None
    finally:
        computed.set()
    with pytest.raises((StoppedError, RejectedError)):
        transfer.done.result(5)
    time.sleep(0.05)
    assert rig.untouched([2, 3])


def test_a_higher_epoch_supersedes_and_nothing_of_the_old_one_lands(rig: Rig) -> None:
    old_sender, new_sender = rig.make_sender(), rig.make_sender()
    ids = [list(range(10, 20)), []]
    rig.receiver.expect("t", 1, ids, LEASE_S)
    old = old_sender.begin(rig.receiver, "t", 1, ids)
    old.push(0, 0, [0, 1, 2])
    wait_until(lambda: not rig.untouched([12]))
    with paused(old_sender.sender):
        computed = threading.Event()
        old.push(0, 5, [5, 6], ready=computed.wait)
        rig.receiver.expect("t", 2, ids, LEASE_S)
        new = new_sender.begin(rig.receiver, "t", 2, ids)
        new.push(0, 0, list(range(20, 30)))
        new.commit(b"new")
        if rig.setup.is_direct:
            # The old sender could still write, so the new one has to wait.
            time.sleep(0.3)
            assert not rig.outcomes
            assert rig.untouched(range(15, 20))
    new.done.result(5)
    computed.set()
    with pytest.raises((StoppedError, RejectedError)):
        old.done.result(5)
    assert rig.outcomes == [Committed("t", 2, b"new", 10, 10 * SIZES[0][0])]
    for position in range(10):
        assert np.array_equal(rig.pools[0][10 + position], new_sender.pools[0][20 + position])


def test_an_old_epoch_that_begins_late_is_refused(rig: Rig) -> None:
    rig.receiver.expect("t", 2, [[1, 2], []], LEASE_S)
    late = rig.make_sender().begin(rig.receiver, "t", 1, [[1, 2], []])
    late.push(0, 0, [0, 1])
    late.commit(b"")
    with pytest.raises(RejectedError, match="STALE_EPOCH"):
        late.done.result(5)
    assert rig.untouched([1, 2])
    assert rig.receiver.drops["stale_epoch"] >= 1
    assert rig.events == []


def test_an_epoch_that_goes_back_changes_nothing(rig: Rig) -> None:
    rig.receiver.expect("t", 2, [[1, 2], []], LEASE_S)
    rig.receiver.expect("t", 1, [[3, 4], []], LEASE_S)
    transfer = rig.make_sender().begin(rig.receiver, "t", 2, [[1, 2], []])
    transfer.push(0, 0, [0, 1])
    transfer.commit(b"")
    transfer.done.result(5)
    assert rig.untouched([3, 4])
    assert not rig.untouched([1])


def test_what_nobody_expects_is_refused(rig: Rig) -> None:
    transfer = rig.make_sender().begin(rig.receiver, "t", 1, [[1, 2], []])
    transfer.push(0, 0, [0, 1])
    with pytest.raises(RejectedError, match="UNKNOWN_TRANSFER"):
        transfer.done.result(5)
    assert rig.untouched([1, 2])


def test_a_second_sender_of_the_same_epoch_is_refused(rig: Rig) -> None:
    rig.receiver.expect("t", 1, [[1, 2], []], LEASE_S)
    first = rig.make_sender().begin(rig.receiver, "t", 1, [[1, 2], []])
    first.push(0, 0, [0])
    wait_until(lambda: not rig.untouched([1]))
    second = rig.make_sender().begin(rig.receiver, "t", 1, [[1, 2], []])
    second.push(0, 0, [5, 6])
    with pytest.raises(RejectedError, match="BUSY"):
        second.done.result(5)
    assert rig.untouched([2])
    first.commit(b"")
    first.done.result(5)


def test_a_lease_longer_than_granted_is_refused(rig: Rig) -> None:
    rig.receiver.expect("t", 1, [[1, 2], []], 5.0)
    transfer = rig.make_sender().begin(rig.receiver, "t", 1, [[1, 2], []], 6.0)
    with pytest.raises(RejectedError, match="LEASE_MISMATCH"):
        transfer.done.result(5)


def test_renewals_keep_a_queued_prompt_alive(rig: Rig) -> None:
    rig.receiver.expect("t", 1, [[1, 2], []], 0.8)
    transfer = rig.make_sender().begin(rig.receiver, "t", 1, [[1, 2], []], 0.8)
    time.sleep(1.8)
    assert rig.events == []
    transfer.push(0, 0, [0, 1])
    transfer.commit(b"")
    transfer.done.result(5)


def test_the_receiver_reports_a_lease_that_nobody_renews(rig: Rig) -> None:
    sender = rig.make_sender(clock=ManualClock())  # its time never comes
    rig.receiver.expect("t", 1, [[1, 2], []], 0.3)
    rig.receiver.expect("never begun", 1, [[3], []], 0.3)
    transfer = sender.begin(rig.receiver, "t", 1, [[1, 2], []], 0.3)
    wait_until(lambda: len(rig.outcomes) == 2)
    assert set(rig.outcomes) == {LeaseExpired("t", 1), LeaseExpired("never begun", 1)}
    if rig.setup.is_direct:
        assert rig.receiver.release("t").result(0.1) is None
    transfer.push(0, 0, [0])
    transfer.commit(b"")
    with pytest.raises(TransferError):
        transfer.done.result(5)
    assert len(rig.outcomes) == 2


def test_the_sender_stops_before_a_lease_that_nobody_answers_runs_out(rig: Rig) -> None:
    sender = rig.make_sender()
    rig.receiver.expect("t", 1, [[1, 2, 3], []], 1.5)
    transfer = sender.begin(rig.receiver, "t", 1, [[1, 2, 3], []], 1.5)
    transfer.push(0, 0, [0])
    wait_until(lambda: not rig.untouched([1]))
    with paused(rig.receiver):
        start = time.monotonic()
        with pytest.raises(LeaseExpiredError, match="no answer"):
            transfer.done.result(5)
        assert time.monotonic() - start < 1.5
        transfer.push(0, 1, [1, 2])
        time.sleep(0.1)
        assert rig.untouched([2, 3])
    assert rig.await_outcome() in (
        LeaseExpired("t", 1),
        Failed(
            "t", 1, "SENDER_GAVE_UP", "no answer from " + rig.receiver.peer.endpoint + " for most of a lease"
        ),
    )


def test_a_sender_that_nobody_answers_says_so(rig: Rig) -> None:
    with paused(rig.receiver):
        transfer = rig.make_sender().begin(rig.receiver, "t", 1, [[1], []], 0.3)
        with pytest.raises(ReceiverGoneError, match="does not answer"):
            transfer.done.result(5)


def test_release_stops_the_sender(rig: Rig) -> None:
    rig.receiver.expect("t", 1, [list(range(1, 9)), []], LEASE_S)
    transfer = rig.make_sender().begin(rig.receiver, "t", 1, [list(range(1, 9)), []])
    transfer.push(0, 0, [0])
    wait_until(lambda: not rig.untouched([1]))
    assert rig.receiver.release("t").result(5) is None
    transfer.push(0, 1, [1, 2, 3, 4, 5, 6, 7])
    transfer.commit(b"")
    with pytest.raises((StoppedError, RejectedError)):
        transfer.done.result(5)
    assert rig.untouched(range(2, 9))
    assert rig.outcomes == []
    assert rig.receiver.release("t").result(5) is None


def test_release_waits_for_whoever_could_still_write(rig: Rig) -> None:
    sender = rig.make_sender()
    rig.receiver.expect("t", 1, [[1, 2, 3, 4], []], 1.0)
    transfer = sender.begin(rig.receiver, "t", 1, [[1, 2, 3, 4], []], 1.0)
    transfer.push(0, 0, [0])
    wait_until(lambda: not rig.untouched([1]))
    with paused(sender.sender):
        asked = time.monotonic()
        released = rig.receiver.release("t")
        assert released.result(5) is None
        waited_s = time.monotonic() - asked
        # Only a sender that writes itself must be waited for: until its lease is out.
        assert (waited_s > 0.6) == rig.setup.is_direct
        rig.pools[0][1:5] = 77
        transfer.push(0, 1, [1, 2, 3])
    with pytest.raises(TransferError):
        transfer.done.result(5)
    assert (rig.pools[0][1:5] == 77).all()


def test_release_ends_a_transfer_that_never_began(rig: Rig) -> None:
    rig.receiver.expect("t", 1, [[1], []], LEASE_S)
    assert rig.receiver.release("t").result(5) is None
    assert rig.receiver.release("never heard of").result(5) is None


def test_blocks_can_be_reserved_again_after_release(rig: Rig) -> None:
    sender = rig.make_sender()
    for attempt in range(20):
        name = f"t{attempt}"
        rig.receiver.expect(name, 1, [[4, 5, 6], []], LEASE_S)
        transfer = sender.begin(rig.receiver, name, 1, [[4, 5, 6], []])
        transfer.push(0, 0, [attempt, attempt + 1, attempt + 2])
        if attempt % 2:
            transfer.commit(b"")
            transfer.done.result(5)
            assert np.array_equal(rig.pools[0][4:7], sender.pools[0][attempt : attempt + 3])
        rig.receiver.release(name).result(5)
        rig.pools[0][4:7] = attempt
        time.sleep(0.002)
        assert (rig.pools[0][4:7] == attempt).all()
