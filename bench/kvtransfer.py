"""Hand-off of one prompt between two processes: `python -m bench.kvtransfer`.

The receiver is a process of its own, which compares every byte of every transfer. Printed:
- zmq_tcp against a bare pyzmq send of the same messages, rounds alternating;
- exposed time (commit -> ACK) over each transport when chunks are pushed while the next computes;
- how long the sender's Python threads stood still while blocks were copied.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import statistics
import threading
import time
from multiprocessing.connection import Connection

import numpy as np
import zmq

from kvtransfer.events import Arrived, Committed, ReceiverEvent
from kvtransfer.peer import Peer
from kvtransfer.receiver import Receiver
from kvtransfer.region import Blocks, Region
from kvtransfer.sender import Sender
from kvtransfer.shared_memory import allocate_shared

# SmolLM2-135M: 30 layers x (K, V) x 3 KV heads x 16 tokens x head size 64, float32.
BLOCK_BYTES = 30 * 2 * 3 * 16 * 64 * 4
HEADER_BYTES = 144
LEASE_S = 10.0
SEED = 7


def source_blocks(num_blocks: int) -> Blocks:
    return np.random.default_rng(SEED).integers(0, 256, (num_blocks, BLOCK_BYTES), dtype=np.uint8)


def receive(pipe: Connection, transport: str, num_blocks: int) -> None:
    """Child process: serve transfers, compare all bytes, and serve bare rounds."""
    shared = allocate_shared("bench", BLOCK_BYTES * num_blocks)
    region = Region("attention", BLOCK_BYTES, num_blocks, "cpu", "bench", shared.memory, shared.name)
    pool, expected = region.blocks(), source_blocks(num_blocks)
    events: queue.SimpleQueue[ReceiverEvent] = queue.SimpleQueue()

    def on_event(event: ReceiverEvent) -> None:
        if not isinstance(event, Arrived):
            events.put(event)

    receiver = Receiver("decode", "i1", [region], transports=[transport], on_event=on_event)
    context = zmq.Context()
    bare: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    bare.setsockopt(zmq.RCVHWM, 0)
    bare.bind("tcp://127.0.0.1:*")
    pipe.send((receiver.peer, bare.getsockopt_string(zmq.LAST_ENDPOINT)))
    for name in iter(pipe.recv, "stop"):
        if name == "bare":
            for _ in range(num_blocks):
                route, _, _ = bare.recv_multipart(copy=False)
            bare.send_multipart([route.bytes, b"done"])
            continue
        block_ids = np.random.default_rng(len(name)).permutation(num_blocks).tolist()
        pool[:] = 0
        receiver.expect(name, 1, [block_ids], LEASE_S)
        pipe.send(block_ids)
        event = events.get(timeout=60)
        if not isinstance(event, Committed):
            raise SystemExit(f"FAILED: {event}")
        wrong = sum(not np.array_equal(pool[b], expected[i]) for i, b in enumerate(block_ids))
        receiver.release(name).result(LEASE_S)
        pipe.send((wrong, event.num_bytes))
    del pool
    receiver.close()
    context.destroy(linger=0)
    shared.close()


class Bench:
    """The sending process and one receiving child."""

    def __init__(self, transport: str, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.source = source_blocks(num_blocks)
        spawn = multiprocessing.get_context("spawn")
        self.pipe, child = spawn.Pipe()
        self.child = spawn.Process(target=receive, args=(child, transport, num_blocks))
        self.child.start()
        self.peer: Peer
        self.peer, bare_endpoint = self.pipe.recv()
        memory = memoryview(self.source.reshape(-1))
        region = Region("attention", BLOCK_BYTES, num_blocks, "cpu", "bench", memory)
        self.sender = Sender("prefill", "i2", [region], transports=[transport], allow_fallback=False)
        self.sender.connect(self.peer)
        self.context = zmq.Context()
        self.bare: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.bare.setsockopt(zmq.SNDHWM, 0)
        self.bare.connect(bare_endpoint)
        self.rounds = 0

    def bare_round(self) -> float:
        """Send the same messages through pyzmq alone; seconds until all were received."""
        self.pipe.send("bare")
        header = bytes(HEADER_BYTES)
        start = time.perf_counter()
        for block in self.source:
            self.bare.send_multipart([header, block.data], copy=False)
        self.bare.recv()
        return time.perf_counter() - start

    def transfer(self, num_chunks: int, compute_s: float) -> tuple[float, float]:
        """Push in chunks, computing before each; (seconds from first push to ACK, exposed seconds)."""
        name = f"transfer-{self.rounds}"
        self.rounds += 1
        self.pipe.send(name)
        block_ids = self.pipe.recv()
        transfer = self.sender.begin(self.peer, name, 1, [block_ids], LEASE_S)
        chunk = self.num_blocks // num_chunks
        compute(max(compute_s, 0.005))  # the prompt's first chunk: OPEN is answered meanwhile
        start = time.perf_counter()
        for first in range(0, self.num_blocks, chunk):
            if first:
                compute(compute_s)
            transfer.push(0, first, range(first, min(first + chunk, self.num_blocks)))
        transfer.commit(b"payload")
        stats = transfer.done.result(60)
        total_s = time.perf_counter() - start
        wrong, num_bytes = self.pipe.recv()
        if wrong or num_bytes != stats.bytes or stats.blocks != self.num_blocks:
            raise SystemExit(f"FAILED: {wrong} wrong blocks, {num_bytes} bytes received, {stats}")
        return total_s, stats.exposed_s

    def longest_stall(self) -> float:
        """Seconds that a Python thread stood still at most during one transfer."""
        stop, worst = threading.Event(), 0.0

        def spin() -> None:
            nonlocal worst
            last = time.perf_counter()
            while not stop.is_set():
                now = time.perf_counter()
                worst, last = max(worst, now - last), now

        thread = threading.Thread(target=spin)
        thread.start()
        self.transfer(1, 0.0)
        stop.set()
        thread.join()
        return worst

    def close(self) -> None:
        self.pipe.send("stop")
        self.child.join()
        self.sender.close()
        self.context.destroy(linger=0)


def compute(seconds: float) -> None:
    """Keep one core busy without the GIL, as a chunk's matrix products do."""
    end = time.perf_counter() + seconds
    matrix = np.ones((256, 256), dtype=np.float32)
    while time.perf_counter() < end:
        np.dot(matrix, matrix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    num_blocks = options.tokens // 16
    megabytes = num_blocks * BLOCK_BYTES / 1e6
    print(f"{options.tokens} tokens, {num_blocks} blocks of {BLOCK_BYTES} bytes, {megabytes:.1f} MB; "
          f"medians of {options.rounds}, all bytes compared each time")  # fmt: skip
    for transport in ("shared_memory", "zmq_tcp"):
        bench = Bench(transport, num_blocks)
        bench.bare_round()
        bench.transfer(1, 0.0)
        bare, whole, exposed = [], [], []
        for _ in range(options.rounds):
            bare.append(bench.bare_round())
            whole.append(bench.transfer(1, 0.0)[0])
            exposed.append(bench.transfer(2, 0.1)[1])
        stall = bench.longest_stall()
        bench.close()
        bare_s, whole_s = statistics.median(bare), statistics.median(whole)
        # Neighbouring rounds see the same machine, so the ratio is taken pair by pair.
        ratio = statistics.median(b / w for b, w in zip(bare, whole, strict=True))
        print(f"{transport:14} whole {whole_s * 1e3:6.2f} ms {megabytes / whole_s / 1e3:5.2f} GB/s | "
              f"bare pyzmq {bare_s * 1e3:6.2f} ms {megabytes / bare_s / 1e3:5.2f} GB/s | "
              f"ratio {ratio:4.2f} | exposed p50 {statistics.median(exposed) * 1e3:5.2f} ms "
              f"max {max(exposed) * 1e3:5.2f} ms | longest stall {stall * 1e3:4.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
