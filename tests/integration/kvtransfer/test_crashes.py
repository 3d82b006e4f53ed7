"""Processes that are killed, or stopped, in the middle of a transfer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baton.v1 import kv_pb2
from kvtransfer.errors import ReceiverGoneError
from kvtransfer.events import Arrived, Committed, LeaseExpired, ReceiverEvent
from kvtransfer.host import SHM_DIR
from kvtransfer.peer import Peer
from kvtransfer.receiver import Receiver
from kvtransfer.sender import Sender
from kvtransfer.shared_memory import SharedMemory, allocate_shared
from tests.integration.kvtransfer.peer_process import BLOCK_BYTES, FILL, NUM_BLOCKS, make_region
from tests.integration.kvtransfer.rig import wait_until

ROOT = Path(__file__).parents[3]


class Process:
    def __init__(self, *arguments: str) -> None:
        module = "tests.integration.kvtransfer.peer_process"
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def read(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        return json.loads(self.popen.stdout.readline())

    def command(self, **fields: object) -> dict[str, Any]:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(fields) + "\n")
        self.popen.stdin.flush()
        return self.read()

    def stop(self) -> None:
        """Stop every thread; the signal alone takes a moment."""
        self.popen.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.popen.pid}/task")
        wait_until(
            lambda: all(
                (t / "stat").read_text().rpartition(")")[2].split()[0] == "T" for t in tasks.iterdir()
            )
        )

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            stream.close()


Spawn = Callable[..., Process]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    processes: list[Process] = []

    def start(*arguments: str) -> Process:
        processes.append(Process(*arguments))
        return processes[-1]

    yield start
    for process in processes:
        if process.popen.poll() is None:
            process.kill()


@pytest.fixture(params=["shared_memory", "zmq_tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


class Decode:
    """The surviving receiver of this process."""

    def __init__(self, transport: str) -> None:
        self.events: list[ReceiverEvent] = []
        self.shared: SharedMemory = allocate_shared("test", BLOCK_BYTES * NUM_BLOCKS)
        region = make_region(self.shared.memory, self.shared.name)
        self.pool = region.blocks()
        self.receiver = Receiver(
            "decode-0", "r1", [region], transports=[transport], on_event=self.events.append
        )

    @property
    def num_arrived(self) -> int:
        return sum(event.num_blocks for event in self.events if isinstance(event, Arrived))

    def start_transfer(self, process: Process, lease_s: float) -> None:
        ids = list(range(NUM_BLOCKS))
        self.receiver.expect("t", 1, [ids], lease_s)
        peer = self.receiver.peer.to_proto().SerializeToString().hex()
        process.command(peer=peer, block_ids=ids, lease_s=lease_s)
        process.command(push=[0, 1])
        wait_until(lambda: self.num_arrived == 2)
        assert (self.pool[:2] == FILL).all()

    def serve_another(self, transport: str) -> None:
        memory = np.full(BLOCK_BYTES * NUM_BLOCKS, 3, dtype=np.uint8)
        sender = Sender(
            "prefill-1", "s1", [make_region(memoryview(memory))], transports=[transport], allow_fallback=False
        )
        self.receiver.expect("t", 2, [[0, 1]], 10.0)
        transfer = sender.begin(self.receiver.peer, "t", 2, [[0, 1]], 10.0)
        transfer.push(0, 0, [0, 1])
        transfer.commit(b"")
        transfer.done.result(5)
        assert self.events[-1] == Committed("t", 2, b"", 2, 2 * BLOCK_BYTES)
        assert (self.pool[:2] == 3).all()
        sender.close()


@pytest.fixture
def decode(transport: str) -> Iterator[Decode]:
    made = Decode(transport)
    yield made
    made.receiver.close()
    del made.pool
    made.shared.close()


def test_a_killed_sender_holds_nothing_back(transport: str, decode: Decode, spawn: Spawn) -> None:
    process = spawn("sender", transport)
    decode.start_transfer(process, lease_s=60.0)
    process.command(push=list(range(2, NUM_BLOCKS)))
    process.kill()
    start = time.monotonic()
    decode.receiver.release("t").result(5)
    assert time.monotonic() - start < 2.0
    decode.pool[:] = 9
    time.sleep(0.1)
    assert (decode.pool == 9).all()
    decode.serve_another(transport)


def test_a_killed_sender_is_superseded(transport: str, decode: Decode, spawn: Spawn) -> None:
    process = spawn("sender", transport)
    decode.start_transfer(process, lease_s=60.0)
    process.kill()
    decode.serve_another(transport)


def test_the_lease_of_a_killed_sender_runs_out(transport: str, decode: Decode, spawn: Spawn) -> None:
    process = spawn("sender", transport)
    decode.start_transfer(process, lease_s=1.2)
    time.sleep(1.8)
    assert LeaseExpired("t", 1) not in decode.events
    process.kill()
    wait_until(lambda: LeaseExpired("t", 1) in decode.events, 4.0)
    decode.receiver.release("t").result(0.5)


def test_a_stopped_sender_is_waited_for_and_writes_nothing_later(
    transport: str, decode: Decode, spawn: Spawn
) -> None:
    process = spawn("sender", transport)
    decode.start_transfer(process, lease_s=1.5)
    process.stop()
    assert process.popen.stdin is not None
    process.popen.stdin.write(json.dumps({"push": list(range(2, NUM_BLOCKS))}) + "\n")
    process.popen.stdin.flush()
    start = time.monotonic()
    decode.receiver.release("t").result(10)
    waited_s = time.monotonic() - start
    assert (waited_s > 0.8) == (transport == "shared_memory")
    decode.pool[:] = 9
    process.popen.send_signal(signal.SIGCONT)
    assert process.read() == {"ok": True}
    time.sleep(0.3)
    assert (decode.pool == 9).all()


def test_a_killed_receiver_is_noticed_and_its_successor_served(transport: str, spawn: Spawn) -> None:
    process = spawn("receiver", transport, "tcp://127.0.0.1:0", "r1")
    peer = Peer.from_proto(kv_pb2.KvPeer.FromString(bytes.fromhex(process.read()["peer"])))
    memory = np.full(BLOCK_BYTES * NUM_BLOCKS, FILL, dtype=np.uint8)
    sender = Sender(
        "prefill-0", "s1", [make_region(memoryview(memory))], transports=[transport], allow_fallback=False
    )
    process.command(transfer_id="t", block_ids=[1, 2, 3], lease_s=60.0)
    transfer = sender.begin(peer, "t", 1, [[1, 2, 3]], 60.0)
    transfer.push(0, 0, [0])
    wait_until(lambda: transfer._num_sent == 1)
    process.kill()
    with pytest.raises(ReceiverGoneError, match="broke"):
        transfer.done.result(5)

    successor = spawn("receiver", transport, peer.endpoint, "r2")
    reborn = Peer.from_proto(kv_pb2.KvPeer.FromString(bytes.fromhex(successor.read()["peer"])))
    assert (reborn.endpoint, reborn.incarnation) == (peer.endpoint, "r2")
    successor.command(transfer_id="t2", block_ids=[1, 2, 3], lease_s=60.0)
    again = sender.begin(reborn, "t2", 1, [[1, 2, 3]], 60.0)
    again.push(0, 0, [0, 1, 2])
    again.commit(b"")
    assert again.done.result(5).blocks == 3
    sender.close()
    if transport == "shared_memory":
        # The successor's allocation swept it.
        assert not (SHM_DIR / peer.regions[0].shm_name).exists()


def test_the_next_allocation_sweeps_what_a_killed_owner_left(spawn: Spawn) -> None:
    process = spawn("receiver", "shared_memory", "tcp://127.0.0.1:0", "r1")
    peer = Peer.from_proto(kv_pb2.KvPeer.FromString(bytes.fromhex(process.read()["peer"])))
    path = SHM_DIR / peer.regions[0].shm_name
    allocate_shared("test", 1).close()
    assert path.exists()  # its owner lives
    process.kill()
    assert path.exists()
    allocate_shared("test", 1).close()
    assert not path.exists()
