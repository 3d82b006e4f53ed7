"""Hand-off of one prompt from GPU to GPU, between two processes: `python -m bench.cuda_ipc`.

Prefill is stood in for by matrix products on a stream, chunk by chunk, each of which ends by
writing its blocks; the receiver is a process of its own, on the second GPU where there is one,
and compares every byte of every transfer on its GPU. Printed:
- exposed: from the end of the last chunk's compute until the receiver's COMMITTED, and until the
  sender has the ACK, with random block ids; also with the last chunk layer by layer, as an engine of 32
  layers does it, whose last layer's attention and logits (here: 0.4 ms) come after all KV;
- rate of whole hand-offs of one large run, and of random blocks, beside a plain copy between the same
  GPUs by one process: from push until COMMITTED, and from the first copy until the last is in place.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import cupy as cp
import numpy as np

from kvtransfer.cuda_ipc import DeviceAllocation, allocate_device, num_gpus
from kvtransfer.events import Arrived, Committed, ReceiverEvent
from kvtransfer.peer import Peer
from kvtransfer.receiver import Receiver
from kvtransfer.region import Region
from kvtransfer.sender import Sender

LEASE_S = 10.0
PARTS = (24 / 32, 30 / 32, 1.0)  # of a block, as engine.backends.cuda.layer_marks has them
TAIL_S = 0.4e-3
POISON = np.uint64(0xEEEEEEEEEEEEEEEE)
MATRIX = 8192


@dataclass(frozen=True)
class Shape:
    """Blocks of one hand-off, of a pool, and their size."""

    num_blocks: int
    pool_blocks: int
    block_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.block_bytes


def truth(shape: Shape) -> Any:
    """What the prompt's blocks hold, uint64[num_blocks, words]; the same in both processes."""
    words = cp.arange(shape.num_bytes // 8, dtype=cp.uint64)
    for factor, shift in ((0x9E3779B97F4A7C15, 29), (0xBF58476D1CE4E5B9, 32)):
        words *= np.uint64(factor)
        words ^= words >> np.uint64(shift)
    return words.reshape(shape.num_blocks, -1)


def view(allocation: DeviceAllocation, shape: Shape) -> Any:
    """View a pool as uint64[pool_blocks, words]."""
    facts = allocation.memory
    memory = cp.cuda.UnownedMemory(facts.pointer, facts.num_bytes, allocation, facts.ordinal)
    pointer = cp.cuda.MemoryPointer(memory, 0)
    return cp.ndarray((shape.pool_blocks, shape.block_bytes // 8), dtype=cp.uint64, memptr=pointer)


def make_region(allocation: DeviceAllocation, shape: Shape) -> Region:
    return Region(
        "attention", shape.block_bytes, shape.pool_blocks, allocation.device, "bench", allocation.memory
    )


def receive(pipe: Connection, gpu: int, shape: Shape) -> None:
    """Child process: serve transfers and compare all bytes."""
    with cp.cuda.Device(gpu):
        allocation = allocate_device(shape.pool_blocks * shape.block_bytes, gpu)
        pool, expected = view(allocation, shape), truth(shape)
        events: queue.SimpleQueue[tuple[ReceiverEvent, float]] = queue.SimpleQueue()

        def on_event(event: ReceiverEvent) -> None:
            if not isinstance(event, Arrived):
                events.put((event, time.perf_counter()))

        region = make_region(allocation, shape)
        receiver = Receiver("decode", "i1", [region], transports=["cuda_ipc"], on_event=on_event)
        pipe.send(receiver.peer)
        for name, block_ids in iter(pipe.recv, "stop"):
            pool.fill(POISON)
            cp.cuda.Device().synchronize()
            receiver.expect(name, 1, [block_ids], LEASE_S)
            pipe.send("expected")
            event, at = events.get(timeout=60)
            if not isinstance(event, Committed):
                raise SystemExit(f"FAILED: {event}")
            time.sleep(0.005)  # comparing would hold the GIL against the ACK
            pipe.send((count_wrong(pool, expected, block_ids), event.num_bytes, at))
            receiver.release(name).result(LEASE_S)
        receiver.close()
        allocation.close()


def count_wrong(pool: Any, expected: Any, block_ids: list[int]) -> int:
    """Count blocks that differ: from the truth, or from the poison where nothing was reserved."""
    wrong = cp.zeros((), dtype=cp.int64)
    for position, block_id in enumerate(block_ids):
        wrong += (pool[block_id] != expected[position]).any()
    for block_id in set(range(len(pool))) - set(block_ids):
        wrong += (pool[block_id] != POISON).any()
    return int(wrong)


class Bench:
    """The sending process, on one GPU, and one receiving child, on another or the same."""

    def __init__(self, shape: Shape, gpu: int, peer_gpu: int, spin: bool) -> None:
        self.shape, self.gpu, self.peer_gpu, self.spin = shape, gpu, peer_gpu, spin
        self.rng = np.random.default_rng()
        spawn = multiprocessing.get_context("spawn")
        self.pipe, child = spawn.Pipe()
        self.child = spawn.Process(target=receive, args=(child, peer_gpu, shape))
        self.child.start()
        child.close()  # so that a dead child is an EOFError here
        self.truth = truth(shape)
        self.allocation = allocate_device(shape.pool_blocks * shape.block_bytes, gpu)
        self.pool = view(self.allocation, shape)
        self.stream = cp.cuda.Stream(non_blocking=True)
        self.a = (cp.arange(MATRIX * MATRIX) % 7 / 7).astype(cp.float16).reshape(MATRIX, MATRIX)
        self.c = cp.empty_like(self.a)
        self.peer: Peer = self.pipe.recv()
        region = make_region(self.allocation, shape)
        self.sender = Sender("prefill", "i2", [region], transports=["cuda_ipc"], allow_fallback=False)
        start = time.perf_counter()
        self.sender.connect(self.peer)
        self.connect_s = time.perf_counter() - start
        self.products_a_second = 0.0
        self.rounds = 0
        self.copied: list[tuple[float, float]] = []
        self.note_copies()

    def note_copies(self) -> None:
        """Let the writer note when each batch begins and is in place."""
        writer: Any = self.sender._link(self.peer).writer
        write = writer.write

        def timed(*batch: Any) -> int:
            start = time.perf_counter()
            moved: int = write(*batch)
            self.copied.append((start, time.perf_counter()))
            return moved

        writer.write = timed

    def calibrate(self) -> None:
        """Measure how long one matrix product takes."""
        self.products_a_second = 1.0
        for num in (3, 20):
            self.stream.synchronize()
            start = time.perf_counter()
            self.compute(num / self.products_a_second)
            self.stream.synchronize()
            self.products_a_second = num / (time.perf_counter() - start)

    def compute(self, seconds: float) -> None:
        """Queue matrix products, as a chunk's prefill would."""
        whole, rest = divmod(seconds * self.products_a_second, 1.0)
        with self.stream:
            for _ in range(int(whole)):
                cp.matmul(self.a, self.a, out=self.c)
            if num_rows := round(rest * MATRIX) // 128 * 128:
                cp.matmul(self.a[:num_rows], self.a, out=self.c[:num_rows])

    def begin(self, source_ids: list[int], target_ids: list[int]) -> Any:
        """Poison the source, reserve the target, and start a transfer."""
        name = f"transfer-{self.rounds}"
        self.rounds += 1
        self.pipe.send((name, target_ids))
        self.pool.fill(POISON)
        cp.cuda.Device().synchronize()
        self.pipe.recv()
        transfer = self.sender.begin(self.peer, name, 1, [target_ids], LEASE_S)
        time.sleep(0.01)  # OPEN is answered, as it would be while the prompt waits
        return transfer

    def check(self, transfer: Any) -> float:
        """Compare what came; returns when the receiver had it, on this process's clock."""
        stats = transfer.done.result(30)
        wrong, num_bytes, at = self.pipe.recv()
        if wrong or num_bytes != self.shape.num_bytes or stats.transport != "cuda_ipc":
            raise SystemExit(f"FAILED: {wrong} wrong blocks, {num_bytes} bytes received, {stats}")
        return float(at)

    def exposed(self, num_chunks: int, compute_s: float, by_layers: bool = False) -> tuple[float, float]:
        """Push random blocks while chunks compute; seconds until (COMMITTED, ACK) after the last."""
        shape = self.shape
        source_ids = self.random_ids()
        transfer = self.begin(source_ids, self.random_ids())
        size = shape.num_blocks // num_chunks
        ready: list[Any] = []
        for first in range(0, shape.num_blocks, size):
            if len(ready) > 1:
                ready[-2].synchronize()  # the host runs one step ahead
            ids = source_ids[first : first + size]
            if by_layers and first + size == shape.num_blocks:
                self.push_layers(transfer, first, ids, compute_s)
                break
            self.compute(compute_s)
            self.store(first, ids, range(shape.block_bytes))
            ready.append(self.moment(blocking=not self.spin))
            transfer.push(0, first, ids, ready=ready[-1].synchronize)
        self.moment(blocking=False).synchronize()
        end = time.perf_counter()
        transfer.commit(b"state")
        transfer.done.result(30)
        acknowledged = time.perf_counter()
        return self.check(transfer) - end, acknowledged - end

    def push_layers(self, transfer: Any, first: int, ids: list[int], compute_s: float) -> None:
        """Compute a chunk, and push its blocks as they are written from front to back."""
        parts, start = [], 0.0
        for stop in PARTS:
            part = range(*(round(share * self.shape.block_bytes) for share in (start, stop)))
            self.compute((stop - start) * compute_s)
            self.store(first, ids, part)
            parts.append((part, self.moment(blocking=stop < 1.0)))
            start = stop
        self.compute(TAIL_S)
        for part, moment in parts:
            transfer.push(0, first, ids, ready=moment.synchronize, part=part)

    def store(self, first: int, ids: list[int], part: range) -> None:
        """Write these bytes of blocks, as a chunk's prefill would."""
        words = slice(part.start // 8, part.stop // 8)
        with self.stream:
            for position, block_id in enumerate(ids, first):
                cp.copyto(self.pool[block_id, words], self.truth[position, words])

    def moment(self, blocking: bool) -> Any:
        """Record an event behind what was queued so far."""
        event = cp.cuda.Event(block=blocking, disable_timing=True)
        event.record(self.stream)
        return event

    def whole(self, random: bool) -> tuple[float, float]:
        """Push everything at once, computed already; seconds until COMMITTED, and of copying alone."""
        in_order = list(range(self.shape.num_blocks))
        source_ids, target_ids = (self.random_ids() if random else in_order for _ in range(2))
        transfer = self.begin(source_ids, target_ids)
        for position, block_id in enumerate(source_ids):
            cp.copyto(self.pool[block_id], self.truth[position])
        cp.cuda.Device().synchronize()
        self.copied.clear()
        start = time.perf_counter()
        transfer.push(0, 0, source_ids)
        transfer.commit(b"state")
        transfer.done.result(30)
        copying_s = max(end for _, end in self.copied) - min(begin for begin, _ in self.copied)
        return self.check(transfer) - start, copying_s

    def plain_copy(self, num_bytes: int) -> Callable[[], float]:
        """Prepare a copy to the other GPU by this process alone; calling it measures seconds."""
        runtime = cp.cuda.runtime
        with cp.cuda.Device(self.peer_gpu):
            target = cp.empty(num_bytes, dtype=cp.uint8)
        if self.peer_gpu != self.gpu:
            try:
                runtime.deviceEnablePeerAccess(self.peer_gpu)
            except runtime.CUDARuntimeError as error:
                if "AlreadyEnabled" not in str(error):
                    raise
        start, end = cp.cuda.Event(), cp.cuda.Event()

        def run() -> float:
            start.record(self.stream)
            runtime.memcpyPeerAsync(
                target.data.ptr,
                self.peer_gpu,
                self.truth.data.ptr,
                self.gpu,
                num_bytes,
                self.stream.ptr,
            )
            end.record(self.stream)
            end.synchronize()
            return float(cp.cuda.get_elapsed_time(start, end)) / 1e3

        return run

    def random_ids(self) -> list[int]:
        return self.rng.permutation(self.shape.pool_blocks)[: self.shape.num_blocks].tolist()

    def close(self) -> None:
        self.sender.close()  # closes the handle before its owner frees the memory
        self.pipe.send("stop")
        self.child.join(30)
        self.allocation.close()


def in_ms(seconds: list[float]) -> str:
    return f"p50 {statistics.median(seconds) * 1e3:6.3f} ms, max {max(seconds) * 1e3:6.3f} ms"


def rate(shape: Shape, seconds: float) -> str:
    return f"{seconds * 1e3:7.3f} ms {shape.num_bytes / seconds / 1e9:7.1f} GB/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=128)
    parser.add_argument("--block-mib", type=int, default=8)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--compute-ms", type=float, default=13.0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--one-gpu", action="store_true", help="both processes on one GPU")
    parser.add_argument("--spin", action="store_true", help="wait for compute by spinning")
    options = parser.parse_args()
    peer_gpu = 0 if options.one_gpu or num_gpus() < 2 else 1
    shape = Shape(options.blocks, options.blocks + options.blocks // 2, options.block_mib << 20)
    bench = Bench(shape, 0, peer_gpu, options.spin)
    bench.calibrate()
    for by_layers in (False, True):
        bench.exposed(options.chunks, 0.001, by_layers)  # loads kernels
    print(
        f"GPU 0 -> GPU {peer_gpu}, {shape.num_blocks} blocks of {options.block_mib} MiB; "
        f"connect {bench.connect_s * 1e3:.1f} ms; "
        f"{options.rounds} rounds, all bytes compared each time"
    )
    wait = "spinning" if options.spin else "blocking"
    print(f"  {options.chunks} chunks of {options.compute_ms:g} ms of compute, {wait} wait:")
    for by_layers in (False, True):
        exposed = [
            bench.exposed(options.chunks, options.compute_ms / 1e3, by_layers) for _ in range(options.rounds)
        ]
        name = "the last one layer by layer" if by_layers else "each one when it is over"
        print(f"    {name}: exposed until COMMITTED {in_ms([committed for committed, _ in exposed])}")
        print(f"    {' ' * len(name)}          until ACK       {in_ms([acked for _, acked in exposed])}")
    plain = bench.plain_copy(shape.num_bytes)
    for name, measure in (("one run", partial(bench.whole, False)), ("random", partial(bench.whole, True))):
        rounds = [(plain(), *measure()) for _ in range(options.rounds)]
        plain_s, whole_s, copying_s = (statistics.median(side) for side in zip(*rounds, strict=True))
        share = statistics.median(p / w for p, w, _ in rounds)
        copying_share = statistics.median(p / c for p, _, c in rounds)
        print(
            f"  whole, {name:8} {rate(shape, whole_s)}, ratio {share:4.2f} | copying "
            f"{rate(shape, copying_s)}, ratio {copying_share:4.2f} | plain copy {rate(shape, plain_s)}"
        )
    bench.close()


if __name__ == "__main__":
    main()
