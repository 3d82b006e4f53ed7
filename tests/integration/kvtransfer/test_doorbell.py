"""Frames over the Unix socket beside a receiver's liveness file."""

from __future__ import annotations

import dataclasses
import queue
import socket
import stat
import threading
from collections.abc import Iterator

import pytest

from kvtransfer.doorbell import DoorbellLink, DoorbellListener, ring_at
from kvtransfer.errors import SharedMemoryError
from kvtransfer.frames import HEADER_BYTES, MAX_CONTROL_BYTES, Payload
from kvtransfer.io_loop import IoLoop
from kvtransfer.links import Route
from kvtransfer.locked_file import LockedFile, doorbell_of, sweep_stale
from tests.integration.kvtransfer.pools import Setup
from tests.integration.kvtransfer.rig import LEASE_S, Rig, wait_until

Frame = tuple[bytes, bytes]


def header(number: int) -> bytes:
    return number.to_bytes(HEADER_BYTES, "little")


class Ends:
    """A listener and one link to it, each on a loop of its own."""

    def __init__(self) -> None:
        self.file = LockedFile("test")
        self.loops = [IoLoop(f"kv-test-{i}", lambda: None, lambda: False) for i in range(2)]
        self.received: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.routes: list[Route] = []
        self.lost = threading.Event()
        self.listener = DoorbellListener(self.file.name)
        for loop in self.loops:
            loop.start()
        self.loops[0].call(lambda: self.listener.start(self.loops[0], self._on_frame))
        connected = ring_at(self.file.name)
        self.link = self.loops[1].call(
            lambda: DoorbellLink(self.loops[1], connected, self._on_answer, self.lost.set)
        )

    def send(self, number: int, payload: bytes = b"") -> None:
        self.loops[1].run(lambda: self.link.send(header(number), payload))

    def answer(self, number: int, payload: bytes = b"") -> None:
        self.loops[0].run(lambda: self.listener.send(self.routes[0], header(number), payload))

    def close(self) -> None:
        self.loops[1].call(lambda: self.link.close(0))
        self.loops[0].call(self.listener.close)
        for loop in self.loops:
            loop.stop()
        self.file.close()

    def _on_frame(self, route: Route, raw: Payload, payload: Payload) -> None:
        self.routes.append(route)
        self.received.put((bytes(raw), bytes(payload)))

    def _on_answer(self, raw: Payload, payload: Payload) -> None:
        self.answers.put((bytes(raw), bytes(payload)))


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(Setup("shared_memory"))
    yield made
    made.close()


def hand_over(rig: Rig, name: str, *, has_doorbell: bool = True) -> None:
    peer = dataclasses.replace(rig.receiver.peer, has_doorbell=has_doorbell)
    rig.receiver.expect(name, 1, [[1, 2], []], LEASE_S)
    transfer = rig.make_sender().sender.begin(peer, name, 1, [[1, 2], []], LEASE_S)
    transfer.push(0, 0, [0, 1])
    transfer.commit(b"")
    assert transfer.done.result(5).blocks == 2


def test_frames_come_whole_and_in_order_both_ways(ends: Ends) -> None:
    for number in range(50):
        ends.send(number, bytes([number]) * number)
    for number in range(50):
        assert ends.received.get(timeout=5) == (header(number), bytes([number]) * number)
    for number in range(50):
        ends.answer(number)
    for number in range(50):
        assert ends.answers.get(timeout=5) == (header(number), b"")
    assert len(set(ends.routes)) == 1


def test_what_the_socket_does_not_take_at_once_goes_out_later(ends: Ends) -> None:
    held = threading.Event()
    ends.loops[0].post(held.wait)
    payloads = [bytes([number]) * MAX_CONTROL_BYTES for number in range(4)]
    for number, payload in enumerate(payloads):
        ends.send(number, payload)
    held.set()
    for number, payload in enumerate(payloads):
        assert ends.received.get(timeout=5) == (header(number), payload)


def test_only_its_user_can_ring_and_nothing_is_left(ends: Ends) -> None:
    path = doorbell_of(ends.file.name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not ends.lost.is_set()
    ends.loops[0].call(ends.listener.close)
    assert ends.lost.wait(5)
    assert not path.exists()
    ends.send(1)  # into the void


def test_nobody_is_there() -> None:
    file = LockedFile("test")
    with pytest.raises(SharedMemoryError, match="nobody answers"):
        ring_at(file.name)
    file.close()


def test_a_doorbell_without_its_file_is_swept_away() -> None:
    file = LockedFile("test")
    path = doorbell_of(file.name)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert path.name not in sweep_stale()
    file.close()
    assert path.name in sweep_stale()
    assert not path.exists()


def test_garbage_disturbs_nobody_else(rig: Rig) -> None:
    hand_over(rig, "before")
    with ring_at(rig.receiver.peer.liveness) as intruder:
        intruder.sendall((0).to_bytes(4, "little") + b"x" * HEADER_BYTES)
        wait_until(lambda: rig.receiver.drops.get("malformed") == 1)
        hand_over(rig, "between")
        intruder.sendall(b"\xff" * 4)
        intruder.settimeout(5)
        assert intruder.recv(1) == b""
    hand_over(rig, "after")


def test_a_receiver_without_one_is_told_over_zeromq(rig: Rig) -> None:
    hand_over(rig, "t", has_doorbell=False)
