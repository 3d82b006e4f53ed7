"""Processes that are killed, or stopped, in the middle of a transfer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from baton.v1 import kv_pb2
from kvtransfer.errors import ReceiverGoneError
from kvtransfer.events import Arrived, Committed, LeaseExpired, ReceiverEvent
from kvtransfer.host import SHM_DIR
from kvtransfer.peer import Peer
from kvtransfer.receiver import Receiver
from kvtransfer.sender import Sender
from kvtransfer.shared_memory import allocate_shared
from tests.integration.kvtransfer.peer_process import BLOCK_BYTES, FILL, NUM_BLOCKS, make_attention
from tests.integration.kvtransfer.pools import Setup, on_gpus, on_host, require_gpus
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


def spawn_sender(spawn: Spawn, setup: Setup, block_bytes: int = BLOCK_BYTES) -> Process:
    process = spawn("sender", setup.transport, gpu_argument(setup.sender_gpu), str(block_bytes))
    assert process.read() == {"ok": True}
    return process


def spawn_receiver(spawn: Spawn, setup: Setup, bind: str, incarnation: str) -> tuple[Process, Peer]:
    gpu = gpu_argument(setup.receiver_gpu)
    process = spawn("receiver", setup.transport, gpu, bind, incarnation)
    return process, Peer.from_proto(kv_pb2.KvPeer.FromString(bytes.fromhex(process.read()["peer"])))


def gpu_argument(gpu: int | None) -> str:
    return "" if gpu is None else str(gpu)


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


GPU_SETUPS = [on_gpus("cuda_ipc", 0, 0), on_gpus("cuda_ipc", 0, 1)]


@pytest.fixture(params=[on_host("shared_memory"), on_host("zmq_tcp"), *GPU_SETUPS])
def setup(request: pytest.FixtureRequest) -> Setup:
    require_gpus(request.param)
    return request.param


class Decode:
    """The surviving receiver of this process."""

    def __init__(self, setup: Setup, block_bytes: int = BLOCK_BYTES) -> None:
        self.setup = setup
        self.events: list[ReceiverEvent] = []
        self.memory = make_attention(setup.receiver_gpu, shared=True, block_bytes=block_bytes)
        self.pool = self.memory.blocks
        self.pool[:] = 0
        self.receiver = Receiver(
            "decode-0",
            "r1",
            [self.memory.region],
            transports=[setup.transport],
            on_event=self.events.append,
        )

    @property
    def num_arrived(self) -> int:
        return sum(event.num_blocks for event in self.events if isinstance(event, Arrived))

    def start_transfer(self, process: Process, lease_s: float) -> None:
        ids = list(range(NUM_BLOCKS))
        self.receiver.expect("t", 1, [ids], lease_s)
        peer = self.receiver.peer.to_proto().SerializeToString().hex()
        process.command(peer=peer, block_ids=ids, lease_s=lease_s)
        process.command(push=[[0], [1]])
        wait_until(lambda: self.num_arrived == 2)
        assert (self.pool[:2] == FILL).all()

    def serve_another(self) -> None:
        memory = make_attention(self.setup.sender_gpu)
        memory.blocks[:2] = 3
        sender = Sender(
            "prefill-1",
            "s1",
            [memory.region],
            transports=[self.setup.transport],
            allow_fallback=False,
        )
        self.receiver.expect("t", 2, [[0, 1]], 10.0)
        transfer = sender.begin(self.receiver.peer, "t", 2, [[0, 1]], 10.0)
        transfer.push(0, 0, [0, 1])
        transfer.commit(b"")
        transfer.done.result(5)
        assert self.events[-1] == Committed("t", 2, b"", 2, 2 * BLOCK_BYTES)
        assert (self.pool[:2] == 3).all()
        sender.close()
        memory.close()

    def close(self) -> None:
        self.receiver.close()
        del self.pool
        self.memory.close()


@pytest.fixture
def decode(setup: Setup) -> Iterator[Decode]:
    made = Decode(setup)
    yield made
    made.close()


def test_a_killed_sender_holds_nothing_back(setup: Setup, decode: Decode, spawn: Spawn) -> None:
    process = spawn_sender(spawn, setup)
    decode.start_transfer(process, lease_s=60.0)
    process.command(push=[[i] for i in range(2, NUM_BLOCKS)])
    process.kill()
    start = time.monotonic()
    decode.receiver.release("t").result(5)
    assert time.monotonic() - start < 2.0
    decode.pool[:] = 9
    time.sleep(0.1)
    assert (decode.pool[:] == 9).all()
    decode.serve_another()


@pytest.mark.parametrize("setup", GPU_SETUPS)
def test_copies_that_a_killed_sender_left_on_the_gpu_settle_before_release(
    setup: Setup, spawn: Spawn
) -> None:
    require_gpus(setup)
    block_bytes = 32 << 20  # 1 GiB in all: it dies while the GPU copies
    decode = Decode(setup, block_bytes)
    process = spawn_sender(spawn, setup, block_bytes)
    decode.start_transfer(process, lease_s=60.0)
    process.command(push=[list(range(2, NUM_BLOCKS))])
    process.kill()
    decode.receiver.release("t").result(5)
    decode.pool[:] = 9
    time.sleep(0.1)
    assert (decode.pool[:] == 9).all()
    decode.close()


def test_a_killed_sender_is_superseded(setup: Setup, decode: Decode, spawn: Spawn) -> None:
    process = spawn_sender(spawn, setup)
    decode.start_transfer(process, lease_s=60.0)
    process.kill()
    decode.serve_another()


def test_the_lease_of_a_killed_sender_runs_out(setup: Setup, decode: Decode, spawn: Spawn) -> None:
    process = spawn_sender(spawn, setup)
    decode.start_transfer(process, lease_s=1.2)
    time.sleep(1.8)
    assert LeaseExpired("t", 1) not in decode.events
    process.kill()
    wait_until(lambda: LeaseExpired("t", 1) in decode.events, 4.0)
    decode.receiver.release("t").result(0.5)


def test_a_stopped_sender_is_waited_for_and_writes_nothing_later(
    setup: Setup, decode: Decode, spawn: Spawn
) -> None:
    process = spawn_sender(spawn, setup)
    decode.start_transfer(process, lease_s=1.5)
    process.stop()
    assert process.popen.stdin is not None
    process.popen.stdin.write(json.dumps({"push": [[i] for i in range(2, NUM_BLOCKS)]}) + "\n")
    process.popen.stdin.flush()
    start = time.monotonic()
    decode.receiver.release("t").result(10)
    waited_s = time.monotonic() - start
    assert (waited_s > 0.8) == setup.is_direct
    decode.pool[:] = 9
    process.popen.send_signal(signal.SIGCONT)
    assert process.read() == {"ok": True}
    time.sleep(0.3)
    assert (decode.pool[:] == 9).all()


def test_a_killed_receiver_is_noticed_and_its_successor_served(
    setup: Setup, spawn: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    process, peer = spawn_receiver(spawn, setup, "tcp://127.0.0.1:0", "r1")
    memory = make_attention(setup.sender_gpu)
    sender = Sender("prefill-0", "s1", [memory.region], transports=[setup.transport], allow_fallback=False)
    process.command(transfer_id="t", block_ids=[1, 2, 3], lease_s=60.0)
    transfer = sender.begin(peer, "t", 1, [[1, 2, 3]], 60.0)
    transfer.push(0, 0, [0])
    wait_until(lambda: transfer._num_sent == 1)
    process.kill()
    with pytest.raises(ReceiverGoneError, match="broke"):
        transfer.done.result(5)

    successor, reborn = spawn_receiver(spawn, setup, peer.endpoint, "r2")
    assert (reborn.endpoint, reborn.incarnation) == (peer.endpoint, "r2")
    successor.command(transfer_id="t2", block_ids=[1, 2, 3], lease_s=60.0)
    again = sender.begin(reborn, "t2", 1, [[1, 2, 3]], 60.0)
    again.push(0, 0, [0, 1, 2])
    again.commit(b"")
    assert again.done.result(5).blocks == 3
    sender.close()
    memory.close()
    assert "a copy job failed" not in caplog.text  # such as closing what a dead process had exported
    if setup.transport == "shared_memory":
        # The successor's allocation swept it.
        assert not (SHM_DIR / peer.regions[0].shm_name).exists()


def test_the_next_allocation_sweeps_what_a_killed_owner_left(spawn: Spawn) -> None:
    process, peer = spawn_receiver(spawn, Setup("shared_memory"), "tcp://127.0.0.1:0", "r1")
    path = SHM_DIR / peer.regions[0].shm_name
    allocate_shared("test", 1).close()
    assert path.exists()  # its owner lives
    process.kill()
    assert path.exists()
    allocate_shared("test", 1).close()
    assert not path.exists()
