"""What every transport must do."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest

from kvtransfer.errors import (
    AbortedError,
    ClosedError,
    FingerprintMismatchError,
    InvalidTransferError,
    LeaseExpiredError,
    ReceiverGoneError,
    RejectedError,
    StoppedError,
    TransferError,
)
from kvtransfer.events import Arrived, Committed, Failed, LeaseExpired, ReceiverEvent
from kvtransfer.receiver import Receiver
from tests.integration.kvtransfer.rig import LEASE_S, SIZES, ManualClock, Rig, paused, wait_until


def test_bytes_arrive_exactly_in_any_order(rig: Rig) -> None:
    sender = rig.make_sender()
    rng = np.random.default_rng()
    ids = rng.permutation(40)[:30].tolist()
    sources = rng.permutation(40)[:30].tolist()
    other_ids, other_sources = [7, 3, 11], [0, 5, 2]
    assert sender.sender.connect(rig.receiver.peer) == rig.transport
    rig.receiver.expect("t", 1, [ids, other_ids], LEASE_S)
    transfer = sender.begin(rig.receiver, "t", 1, [ids, other_ids])
    skipped = {0, 1, 2, 17}
    for first in rng.permutation(range(0, 30, 5)).tolist():
        run = [i for i in range(first, first + 5) if i not in skipped]
        for i in run if len(run) < 5 else []:
            transfer.push(0, i, [sources[i]])
        if len(run) == 5:
            transfer.push(0, first, sources[first : first + 5])
    transfer.push(1, 1, other_sources[1:])
    transfer.commit(b"state \0 of the sampler")
    stats = transfer.done.result(5)

    num_bytes = 26 * SIZES[0][0] + 2 * SIZES[1][0]
    assert (stats.transport, stats.blocks, stats.bytes) == (rig.transport, 28, num_bytes)
    assert 0 < stats.exposed_s < 5
    assert rig.outcomes == [Committed("t", 1, b"state \0 of the sampler", 28, num_bytes)]
    assert sum(e.num_blocks for e in rig.events if isinstance(e, Arrived)) == 28
    for position, (target, source) in enumerate(zip(ids, sources, strict=True)):
        if position in skipped:
            assert rig.untouched([target])
        else:
            assert np.array_equal(rig.pools[0][target], sender.pools[0][source])
    assert rig.untouched(sorted(set(range(40)) - set(ids)))
    assert rig.untouched(sorted(set(range(12)) - {3, 11}), group=1)
    for target, source in zip(other_ids[1:], other_sources[1:], strict=True):
        assert np.array_equal(rig.pools[1][target], sender.pools[1][source])
    assert rig.receiver.drops == {}


def test_a_commit_without_blocks(rig: Rig) -> None:
    rig.receiver.expect("t", 1, [[1, 2], []], LEASE_S)
    transfer = rig.make_sender().begin(rig.receiver, "t", 1, [[1, 2], []])
    transfer.commit(b"")
    assert transfer.done.result(5).blocks == 0
    assert rig.outcomes == [Committed("t", 1, b"", 0, 0)]


def test_a_count_that_does_not_match_is_refused(rig: Rig) -> None:
    rig.receiver.expect("t", 1, [[1, 2, 3], []], LEASE_S)
    transfer = rig.make_sender().begin(rig.receiver, "t", 1, [[1, 2, 3], []])
    transfer.push(0, 0, [4, 5])
    wait_until(lambda: transfer._num_sent == 2)
    transfer._num_sent = transfer._num_queued = 3  # a block that was counted and never sent
    transfer.commit(b"")
    with pytest.raises(RejectedError, match="3 blocks announced, 2 arrived") as refused:
        transfer.done.result(5)
    assert refused.value.reason == "COUNT_MISMATCH"
    outcome = rig.await_outcome()
    assert isinstance(outcome, Failed)
    assert outcome.reason == "COUNT_MISMATCH"
    assert rig.receiver.release("t").result(1) is None


def test_blocks_wait_until_they_are_computed(rig: Rig) -> None:
    computed = threading.Event()
    rig.receiver.expect("t", 1, [[1, 2, 3], []], LEASE_S)
    sender = rig.make_sender()
    transfer = sender.begin(rig.receiver, "t", 1, [[1, 2, 3], []])
    transfer.push(0, 0, [4])
    wait_until(lambda: not rig.untouched([1]))
    transfer.push(0, 1, [5, 6], ready=computed.wait)
    transfer.commit(b"")
    time.sleep(0.1)
    assert rig.untouched([2, 3])
    assert not rig.outcomes
    computed.set()
    assert transfer.done.result(5).blocks == 3
    assert np.array_equal(rig.pools[0][1:4], sender.pools[0][4:7])


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


def test_fail_is_reported_with_its_reason(rig: Rig) -> None:
    rig.receiver.expect("t", 3, [[1, 2], []], LEASE_S)
    transfer = rig.make_sender().begin(rig.receiver, "t", 3, [[1, 2], []])
    transfer.push(0, 0, [4])
    transfer.fail("ENGINE_FAILED", "the prompt could not be computed: ü")
    transfer.fail("AGAIN", "")
    with pytest.raises(AbortedError):
        transfer.done.result(5)
    assert rig.outcomes == [Failed("t", 3, "ENGINE_FAILED", "the prompt could not be computed: ü")]
    with pytest.raises(InvalidTransferError, match="committed or failed"):
        transfer.push(0, 1, [5])
    with pytest.raises(InvalidTransferError, match="committed or failed"):
        transfer.commit(b"")


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


def test_another_incarnation_is_refused(rig: Rig) -> None:
    rig.receiver.expect("t", 1, [[1, 2], []], LEASE_S)
    before = dataclasses.replace(rig.receiver.peer, incarnation="r0")
    transfer = rig.make_sender().sender.begin(before, "t", 1, [[1, 2], []], LEASE_S)
    transfer.push(0, 0, [0, 1])
    with pytest.raises(RejectedError, match="WRONG_INCARNATION"):
        transfer.done.result(5)
    assert rig.untouched([1, 2])
    assert rig.receiver.drops["wrong_incarnation"] >= 1


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


def test_another_layout_is_refused_at_connect(rig: Rig) -> None:
    sender = rig.make_sender(fingerprint="another").sender
    with pytest.raises(FingerprintMismatchError, match="another"):
        sender.connect(rig.receiver.peer)
    fewer = dataclasses.replace(rig.receiver.peer, regions=rig.receiver.peer.regions[:1])
    with pytest.raises(FingerprintMismatchError, match="cache groups"):
        rig.make_sender().sender.connect(fewer)


def test_many_transfers_at_once(rig: Rig) -> None:
    senders = [rig.make_sender() for _ in range(3)]
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            rng = np.random.default_rng(number)
            ids = [[number * 4 + i for i in range(4)], [number]]
            sender = senders[number % 3]
            for attempt in range(12):
                name = f"t{number}-{attempt}"
                rig.receiver.expect(name, 1, ids, LEASE_S)
                transfer = sender.begin(rig.receiver, name, 1, ids)
                sources = rng.integers(0, 40, 4).tolist()
                for position in rng.permutation(4).tolist():
                    transfer.push(0, position, [sources[position]])
                transfer.push(1, 0, [number])
                transfer.commit(name.encode())
                assert transfer.done.result(20).blocks == 5
                assert np.array_equal(rig.pools[0][ids[0]], sender.pools[0][sources])
                assert np.array_equal(rig.pools[1][number], sender.pools[1][number])
                rig.receiver.release(name).result(20)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(rig.outcomes) == 120
    assert rig.receiver.drops == {}


def test_bad_arguments_change_nothing(rig: Rig) -> None:
    receiver, sender = rig.receiver, rig.make_sender()
    for transfer_id, epoch, ids, lease_s, field in (
        ("", 1, [[1], []], 1.0, "transfer_id"),
        ("x" * 65, 1, [[1], []], 1.0, "transfer_id"),
        ("nul\0", 1, [[1], []], 1.0, "transfer_id"),
        ("\udc80", 1, [[1], []], 1.0, "transfer_id"),
        ("t", 0, [[1], []], 1.0, "epoch"),
        ("t", 1 << 32, [[1], []], 1.0, "epoch"),
        ("t", 1, [[1]], 1.0, "block_ids"),
        ("t", 1, [[40], []], 1.0, "block_ids"),
        ("t", 1, [[-1], []], 1.0, "block_ids"),
        ("t", 1, [[1, 1], []], 1.0, "block_ids"),
        ("t", 1, [[1], []], 0.0, "lease_s"),
        ("t", 1, [[1], []], float("nan"), "lease_s"),
    ):
        with pytest.raises(InvalidTransferError, match=field):
            receiver.expect(transfer_id, epoch, ids, lease_s)
        with pytest.raises(InvalidTransferError, match=field):
            sender.begin(receiver, transfer_id, epoch, ids, lease_s)
    receiver.expect("t", 1, [[1, 2], []], LEASE_S)
    transfer = sender.begin(receiver, "t", 1, [[1, 2], []])
    for group, first, sources, field in (
        (2, 0, [0], "group"),
        (-1, 0, [0], "group"),
        (0, 1, [0, 1], "first_index"),
        (0, -1, [0], "first_index"),
        (0, 0, [40], "src_block_ids"),
        (0, 0, [-1], "src_block_ids"),
    ):
        with pytest.raises(InvalidTransferError, match=field):
            transfer.push(group, first, sources)
    transfer.push(0, 0, [0])
    with pytest.raises(InvalidTransferError, match="pushed before"):
        transfer.push(0, 0, [1])
    with pytest.raises(InvalidTransferError, match="at most 1048576"):
        transfer.commit(bytes((1 << 20) + 1))
    with pytest.raises(InvalidTransferError, match="under way"):
        sender.begin(receiver, "t", 1, [[1, 2], []]).done.result(5)
    transfer.commit(bytes(1 << 20))
    assert transfer.done.result(5).blocks == 1


def test_an_event_handler_that_fails_disturbs_nothing(rig: Rig) -> None:
    seen: list[ReceiverEvent] = []

    def on_event(event: ReceiverEvent) -> None:
        seen.append(event)
        raise RuntimeError("a bug of the worker")

    receiver = rig.make_receiver(on_event=on_event)
    sender = rig.make_sender()
    for name in ("t1", "t2"):
        receiver.expect(name, 1, [[1, 2], []], LEASE_S)
        transfer = sender.begin(receiver, name, 1, [[1, 2], []])
        transfer.push(0, 0, [0, 1])
        transfer.commit(b"")
        assert transfer.done.result(5).blocks == 2
    assert len([event for event in seen if isinstance(event, Committed)]) == 2


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
    stale = sender.begin(old, "t", 1, [[1, 2], []], 1.0) if rig.transport != "shared_memory" else None
    if stale is not None:
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
