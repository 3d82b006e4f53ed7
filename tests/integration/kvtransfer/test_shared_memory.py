"""Choosing shared memory, and not getting it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from kvtransfer.errors import TransportUnavailableError
from kvtransfer.receiver import Receiver
from kvtransfer.region import Region
from kvtransfer.sender import Sender
from kvtransfer.shared_memory import allocate_shared

BOTH = ("shared_memory", "zmq_tcp")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    shared = allocate_shared("test", 4 * 1000)
    region = Region("attention", 1000, 4, "cpu", "fp", shared.memory, shared.name)
    made = Receiver("decode-0", "r1", [region], transports=BOTH, on_event=lambda event: None)
    yield made
    made.close()
    shared.close()


def make_sender(*, allow_fallback: bool) -> Sender:
    memory = memoryview(np.arange(4000, dtype=np.uint8))
    region = Region("attention", 1000, 4, "cpu", "fp", memory)
    return Sender("prefill-0", "s1", [region], transports=BOTH, allow_fallback=allow_fallback)


@pytest.mark.parametrize("shm_name", ["baton-gone-1-abc", "../../etc/passwd", "passwd"])
def test_falls_back_only_where_allowed(
    receiver: Receiver, shm_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    facts = dataclasses.replace(receiver.peer.regions[0], shm_name=shm_name)
    peer = dataclasses.replace(receiver.peer, regions=(facts,))
    strict, lenient = make_sender(allow_fallback=False), make_sender(allow_fallback=True)
    with pytest.raises(TransportUnavailableError, match="shared_memory: "):
        strict.connect(peer)
    assert lenient.connect(peer) == "zmq_tcp"
    assert "does not open" in caplog.text
    receiver.expect("t", 1, [[3]], 5.0)
    transfer = lenient.begin(peer, "t", 1, [[3]], 5.0)
    transfer.push(0, 0, [1])
    transfer.commit(b"")
    assert transfer.done.result(5).transport == "zmq_tcp"
    strict.close()
    lenient.close()


def test_a_file_smaller_than_announced_is_not_mapped(receiver: Receiver) -> None:
    facts = dataclasses.replace(receiver.peer.regions[0], num_blocks=5)
    sender = make_sender(allow_fallback=False)
    with pytest.raises(TransportUnavailableError, match="4000 bytes, its owner announced 5000"):
        sender.connect(dataclasses.replace(receiver.peer, regions=(facts,)))
    sender.close()


def test_another_host_is_reached_over_tcp_without_a_fallback(receiver: Receiver) -> None:
    sender = make_sender(allow_fallback=False)
    assert sender.connect(receiver.peer) == "shared_memory"
    elsewhere = dataclasses.replace(receiver.peer, worker_id="decode-1", host_id="elsewhere")
    assert sender.connect(elsewhere) == "zmq_tcp"
    sender.close()
