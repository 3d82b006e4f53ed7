"""A receiver and senders in one process, with pools that tests can look into."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kvtransfer.events import Arrived, Committed, ReceiverEvent
from kvtransfer.outbound import OutboundTransfer
from kvtransfer.receiver import Receiver
from kvtransfer.region import Blocks
from kvtransfer.sender import Sender
from tests.integration.kvtransfer.pools import Pool, Setup, make_pool

POISON = 0xA5
SIZES = ((4096, 40), (1000, 12))  # bytes a block, blocks: two cache groups
LEASE_S = 20.0


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.002)


class ManualClock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """One receiver with a poisoned pool, and as many senders as asked for."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.transport = setup.transport
        self.events: list[ReceiverEvent] = []
        self.pools: list[Any] = []
        self._stack = contextlib.ExitStack()
        self._senders = 0
        self.receiver = self.make_receiver()

    def make_receiver(
        self,
        *,
        incarnation: str = "r1",
        bind: str = "",
        on_event: Callable[[ReceiverEvent], None] | None = None,
        on_committed: Callable[[Committed], None] = lambda event: None,
        window_bytes: int = 16 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> Receiver:
        pools = make_pools(self.setup.receiver_gpu, shared=True)
        for pool in pools:
            self._stack.callback(pool.close)
            pool.blocks[:] = POISON
        self.pools = [pool.blocks for pool in pools]
        receiver = Receiver(
            "decode-0",
            incarnation,
            [pool.region for pool in pools],
            bind=bind or ("fake://" if self.transport == "fake" else "tcp://127.0.0.1:0"),
            transports=[self.transport],
            on_event=on_event or self.events.append,
            on_committed=on_committed,
            window_bytes=window_bytes,
            clock=clock,
        )
        self._stack.callback(receiver.close)
        return receiver

    def make_sender(
        self, *, clock: Callable[[], float] = time.monotonic, fingerprint: str = "fp"
    ) -> TestSender:
        self._senders += 1
        sender = TestSender(f"prefill-{self._senders}", self.setup, clock, fingerprint, self._senders)
        self._stack.callback(sender.close)
        return sender

    @property
    def outcomes(self) -> list[ReceiverEvent]:
        return [event for event in self.events if not isinstance(event, Arrived)]

    def await_outcome(self, timeout_s: float = 5.0) -> ReceiverEvent:
        wait_until(lambda: bool(self.outcomes), timeout_s)
        return self.outcomes[-1]

    def untouched(self, block_ids: Sequence[int], group: int = 0) -> bool:
        return all((self.pools[group][block_id] == POISON).all() for block_id in block_ids)

    def close(self) -> None:
        self.pools.clear()
        self._stack.close()


class TestSender:
    """A sender with random blocks; `pools` is what they are, wherever they are."""

    __test__ = False

    def __init__(
        self, worker_id: str, setup: Setup, clock: Callable[[], float], fingerprint: str, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        self.pools: list[Blocks] = [rng.integers(0, 256, (n, b), dtype=np.uint8) for b, n in SIZES]
        self._memories = make_pools(setup.sender_gpu, fingerprint=fingerprint)
        for memory, pool in zip(self._memories, self.pools, strict=True):
            memory.blocks[:] = pool
        self.sender = Sender(
            worker_id,
            "s1",
            [memory.region for memory in self._memories],
            transports=[setup.transport],
            allow_fallback=False,
            clock=clock,
        )

    def close(self) -> None:
        self.sender.close()
        for memory in self._memories:
            memory.close()
        self._memories = []

    def begin(
        self,
        receiver: Receiver,
        transfer_id: str,
        epoch: int,
        block_ids: Sequence[Sequence[int]],
        lease_s: float = LEASE_S,
    ) -> OutboundTransfer:
        return self.sender.begin(receiver.peer, transfer_id, epoch, block_ids, lease_s)


def make_pools(gpu: int | None, *, shared: bool = False, fingerprint: str = "fp") -> list[Pool]:
    return [
        make_pool(f"group{i}", block_bytes, num_blocks, gpu=gpu, shared=shared, fingerprint=fingerprint)
        for i, (block_bytes, num_blocks) in enumerate(SIZES)
    ]


@contextlib.contextmanager
def paused(owner: Receiver | Sender) -> Iterator[None]:
    """Keep a sender's or receiver's loop from doing anything, as a stopped process would."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        leave.wait()

    owner._loop.post(hold)
    assert entered.wait(5)
    try:
        yield
    finally:
        leave.set()
