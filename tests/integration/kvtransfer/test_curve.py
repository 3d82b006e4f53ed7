"""With CURVE keys, senders that the registry has not named get no further than the handshake."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import pytest
import zmq

from kvtransfer.curve import WELCOME_S, CurveKeys, Welcome
from kvtransfer.errors import InvalidPeerError, TransferError, TransportUnavailableError
from kvtransfer.io_loop import IoLoop
from kvtransfer.receiver import Receiver
from kvtransfer.region import Region
from kvtransfer.sender import Sender
from kvtransfer.zmq_tcp import ZmqLink

BLOCKS = [[2, 0]]


class Pair:
    """A receiver with keys, and senders with those that they are given."""

    def __init__(self) -> None:
        self.pool = np.zeros((4, 1000), np.uint8)
        self.source = np.arange(4000, dtype=np.uint8).reshape(4, 1000) | 1
        self.receiver = Receiver(
            "decode-0",
            "r1",
            [self._region(self.pool)],
            transports=["zmq_tcp"],
            on_event=lambda event: None,
            curve=CurveKeys.generate(),
        )
        self._senders: list[Sender] = []
        self._transfers = 0

    def sender(self, keys: CurveKeys | None) -> Sender:
        region = self._region(self.source)
        name = f"prefill-{len(self._senders)}"
        sender = Sender(name, "s1", [region], transports=["zmq_tcp"], allow_fallback=False, curve=keys)
        self._senders.append(sender)
        return sender

    def send(self, sender: Sender, *, server_key: str = "", lease_s: float = 0.5) -> int:
        """Hand two blocks over; returns how many arrived."""
        self._transfers += 1
        name = f"t{self._transfers}"
        peer = self.receiver.peer
        if server_key:
            peer = dataclasses.replace(peer, curve_public_key=server_key)
        self.receiver.expect(name, 1, BLOCKS, lease_s)
        transfer = sender.begin(peer, name, 1, BLOCKS, lease_s)
        transfer.push(0, 0, [1, 3])
        transfer.commit(b"")
        return transfer.done.result(5).blocks

    def close(self) -> None:
        for sender in self._senders:
            sender.close()
        self.receiver.close()

    def _region(self, pool: np.ndarray) -> Region:  # type: ignore[type-arg]
        return Region("attention", 1000, 4, "cpu", "fp", memoryview(pool.reshape(-1)))


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_a_listed_sender_hands_blocks_over(pair: Pair) -> None:
    keys = CurveKeys.generate()
    pair.receiver.welcome([keys.public])
    assert pair.send(pair.sender(keys), lease_s=5) == 2
    assert np.array_equal(pair.pool[[2, 0]], pair.source[[1, 3]])


def test_an_unlisted_sender_is_refused_and_logged_until_it_is_listed(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    keys = CurveKeys.generate()
    pair.receiver.welcome([CurveKeys.generate().public])
    sender = pair.sender(keys)
    with pytest.raises(TransferError):
        pair.send(sender)
    assert not pair.pool.any()
    assert f"its CURVE key {keys.public} is not of a listed worker" in caplog.text
    assert keys.secret not in caplog.text
    pair.receiver.welcome([keys.public])
    assert pair.send(sender, lease_s=5) == 2


def test_a_receiver_with_another_key_gets_nothing(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    keys = CurveKeys.generate()
    pair.receiver.welcome([keys.public])
    with pytest.raises(TransferError):
        pair.send(pair.sender(keys), server_key=CurveKeys.generate().public)
    assert not pair.pool.any()
    assert "handshake" in caplog.text


def test_a_sender_without_keys_gets_no_further_than_the_handshake(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TransportUnavailableError, match="demands CURVE and the other has none"):
        pair.send(pair.sender(None))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(pair.receiver.peer.endpoint)
        socket.send_multipart([b"x" * 100, b""])
        deadline = time.monotonic() + 5
        while "a CURVE handshake with a sender" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
    context.term()
    assert "no key, or a wrong one" in caplog.text
    assert pair.receiver.drops == {}


def test_a_sender_with_keys_refuses_an_open_receiver(pair: Pair) -> None:
    with pytest.raises(TransportUnavailableError, match="demands CURVE"):
        pair.sender(CurveKeys.generate()).connect(
            dataclasses.replace(pair.receiver.peer, curve_public_key="")
        )


@pytest.mark.parametrize("key", ["short", "é" * 40, '"' * 40])
def test_a_malformed_key_is_refused(pair: Pair, key: str) -> None:
    peer = dataclasses.replace(pair.receiver.peer, curve_public_key=key)
    with pytest.raises(InvalidPeerError, match="curve_public_key"):
        pair.sender(CurveKeys.generate()).connect(peer)


def test_a_sender_that_is_named_no_more_is_forgotten() -> None:
    now = [0.0]
    welcome = Welcome(lambda: now[0])
    welcome.name(["a"])
    now[0] = WELCOME_S - 1
    assert "a" in welcome
    welcome.name(["b"])
    now[0] = WELCOME_S + 1
    assert "a" not in welcome
    assert "b" in welcome


def test_secrets_do_not_show() -> None:
    keys = CurveKeys.generate()
    assert keys.secret not in repr(keys)


class Readers:
    """What a link needs of its loop, driven by hand."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []

    def add_reader(self, socket: object, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def remove_reader(self, socket: object) -> None:
        pass


def test_nobody_waits_to_send_where_no_handshake_succeeded(pair: Pair) -> None:
    keys, lost = CurveKeys.generate(), threading.Event()
    loop, context = Readers(), zmq.Context[zmq.Socket[bytes]]()
    link = ZmqLink(
        cast(IoLoop, loop),
        context,
        pair.receiver.peer.endpoint,
        lambda header, payload: None,
        lost.set,
        keys,
        CurveKeys.generate().public,
    )
    deadline = time.monotonic() + 5
    while not lost.is_set() and time.monotonic() < deadline:
        with contextlib.suppress(zmq.Again):
            loop.callbacks[1]()
    assert lost.is_set()
    sender = threading.Thread(target=link.send, args=(b"header", b"payload"), daemon=True)
    sender.start()
    sender.join(2)
    assert not sender.is_alive()
    link.close(0)
    context.term()
