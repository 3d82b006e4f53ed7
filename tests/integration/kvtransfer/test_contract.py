"""What every transport must do: bytes, counts, arguments."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest

from kvtransfer.errors import (
    AbortedError,
    FingerprintMismatchError,
    InvalidTransferError,
    RejectedError,
)
from kvtransfer.events import Arrived, Committed, Failed, ReceiverEvent
from tests.integration.kvtransfer.rig import LEASE_S, SIZES, Rig, wait_until


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
    transfer._num_sent = transfer._pushes.num_blocks = 3  # a block that was counted and never sent
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


def test_blocks_may_come_in_parts_while_the_rest_is_computed(rig: Rig) -> None:
    size = SIZES[0][0]
    rig.receiver.expect("t", 1, [[5, 2, 3], []], LEASE_S)
    sender = rig.make_sender()
    transfer = sender.begin(rig.receiver, "t", 1, [[5, 2, 3], []])
    transfer.push(0, 0, [7, 8, 9], part=range(3000))
    transfer.push(0, 0, [7], part=range(3000, 4000))
    time.sleep(0.05)
    assert not any(isinstance(event, Arrived) for event in rig.events)
    transfer.push(0, 1, [8, 9], part=range(3000, size))
    transfer.push(0, 0, [7], part=range(4000, size))
    transfer.commit(b"")
    stats = transfer.done.result(5)
    assert (stats.blocks, stats.bytes) == (3, 3 * size)
    assert rig.outcomes == [Committed("t", 1, b"", 3, 3 * size)]
    assert np.array_equal(rig.pools[0][[5, 2, 3]], sender.pools[0][7:10])
    assert rig.untouched(sorted(set(range(40)) - {5, 2, 3}))


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


def test_who_must_know_first_hears_of_commit_before_it_is_acknowledged(rig: Rig) -> None:
    order: list[str] = []

    def on_committed(event: Committed) -> None:
        time.sleep(0.05)
        order.append(f"at once {event.transfer_id}")

    receiver = rig.make_receiver(
        on_committed=on_committed,
        on_event=lambda event: order.append("event") if isinstance(event, Committed) else None,
    )
    receiver.expect("t", 1, [[1], []], LEASE_S)
    transfer = rig.make_sender().begin(receiver, "t", 1, [[1], []])
    transfer.done.add_done_callback(lambda _: order.append("done"))
    transfer.push(0, 0, [0])
    transfer.commit(b"")
    assert transfer.done.result(5).exposed_s >= 0.05
    wait_until(lambda: len(order) == 3)
    assert order[0] == "at once t"
