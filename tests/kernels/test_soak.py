"""An hour's worth of steps on the device: thousands of requests come, are preempted, cancelled and answered.

tests/unit/engine/test_compressed_hour.py does the same without a device. Here the batch-invariant mode
runs, in which a request has one right answer: some prompts come again and again among the others, and must
be answered as they were the first time, alone.
"""

from __future__ import annotations

import queue
import random
from pathlib import Path

import pytest
import torch

from engine.build import build_engine
from engine.config import EngineConfig
from engine.events import RequestCancelled, RequestFailed, StepEvents, TokenSampled
from engine.request import Request
from engine.sampling_params import SamplingParams
from tests.support.tiny_families import create_family

BLOCK, POOL_BLOCKS, MAX_LIVE, MAX_RUNNING = 16, 120, 96, 64
BLOCK_BYTES = 3 * 2 * 2 * BLOCK * 64 * 2
NUM_REQUESTS, PROBES = 20_000, 20


class Soak:
    """Keeps an engine full, and knows what each request may answer."""

    def __init__(self, directory: Path) -> None:
        self.rng = random.Random(torch.seed())
        self.events: queue.Queue[StepEvents] = queue.Queue()
        config = EngineConfig(
            str(directory),
            "tiny",
            backend="cuda",
            context_length=512,
            kv_bytes=POOL_BLOCKS * BLOCK_BYTES,
            swap_bytes=POOL_BLOCKS * BLOCK_BYTES // 4,
            host_cache_bytes=POOL_BLOCKS * BLOCK_BYTES,
            block_size=BLOCK,
            max_step_tokens=512,
            max_running=MAX_RUNNING,
            batch_invariant=True,
        )
        self.engine = build_engine(config, self.events.put).engine
        self.engine.start()
        self.live: dict[str, list[int]] = {}
        self.wanted: dict[str, int] = {}
        self.num_added = self.num_answered = self.num_cancelled = self.num_tokens = 0
        self.probes = [(self.prompt(), self.rng.randrange(2, 60)) for _ in range(PROBES)]
        self.first_answers: dict[int, list[int]] = {}
        for number in range(PROBES):
            self.add(number)
            self.drain(0)

    def prompt(self) -> list[int]:
        """Lognormal lengths, as those of chats; every third begins as some others do."""
        shared = (
            [self.rng.randrange(3, 9)] * (BLOCK * self.rng.randrange(1, 8))
            if self.rng.random() < 0.33
            else []
        )
        length = min(200, 1 + int(self.rng.lognormvariate(0, 0.9) * 25))
        return shared + [self.rng.randrange(3, 97) for _ in range(length)]

    def add(self, probe: int | None = None) -> None:
        prompt, length = (self.prompt(), self.rng.randrange(1, 160)) if probe is None else self.probes[probe]
        sampling = SamplingParams(
            temperature=0.0 if probe is not None else float(self.rng.randrange(2)),
            max_tokens=length,
            ignore_eos=True,
        )
        # The probe's number is part of its name.
        name = f"{self.num_added}:{'' if probe is None else probe}"
        self.num_added += 1
        self.live[name] = []
        self.wanted[name] = length
        self.engine.submit(Request(name, list(prompt), len(prompt), sampling))

    def end(self, name: str) -> list[int]:
        del self.wanted[name]
        return self.live.pop(name)

    def take(self, events: StepEvents) -> None:
        for event in events.events:
            match event:
                case RequestFailed():
                    raise event.error
                case RequestCancelled():
                    self.end(event.request_id)
                    self.num_cancelled += 1
                case TokenSampled():
                    self.live[event.request_id].append(event.token.token_id)
                    self.num_tokens += 1
                    if event.finish_reason is None:
                        continue
                    length, tokens = self.wanted[event.request_id], self.end(event.request_id)
                    assert len(tokens) == length
                    self.num_answered += 1
                    probe = event.request_id.partition(":")[2]
                    if probe:
                        assert tokens == self.first_answers.setdefault(int(probe), tokens), f"probe {probe}"

    def drain(self, most_live: int) -> None:
        while len(self.live) > most_live:
            self.take(self.events.get(timeout=60))

    def run(self, num_requests: int) -> None:
        """So many more, to the last."""
        for _ in range(num_requests):
            self.drain(MAX_LIVE - 1)
            self.add(self.rng.randrange(PROBES) if self.rng.random() < 0.1 else None)
            if self.rng.random() < 0.05:
                self.engine.cancel(self.rng.choice(list(self.live)))
        self.drain(0)

    def memory(self) -> tuple[int, int]:
        """Bytes of this process on the host, and in use on the device."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        free, total = torch.cuda.mem_get_info()
        return pages * 4096, total - free


# By itself on the device: it looks at the device's memory.
@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_no_block_is_lost_and_memory_does_not_grow(tmp_path: Path) -> None:
    create_family("llama3", tmp_path, head_dim=64)
    soak = Soak(tmp_path)
    try:
        # Graphs are captured and buffers grow at first.
        soak.run(NUM_REQUESTS // 4)
        host, device = soak.memory()
        soak.run(NUM_REQUESTS - NUM_REQUESTS // 4)
        host_after, device_after = soak.memory()
        soak.engine.check_invariants()
        stats = soak.engine.stats()
    finally:
        soak.engine.stop()
    assert (stats.used_blocks, stats.swapped, stats.running, stats.waiting, stats.reserved) == (0, 0, 0, 0, 0)
    assert stats.preemptions > NUM_REQUESTS // 100
    assert stats.loaded_blocks > 0
    assert soak.num_cancelled > NUM_REQUESTS // 100
    assert soak.num_answered + soak.num_cancelled == NUM_REQUESTS + PROBES
    grown = host_after - host
    # What is loaded late may take some; of each request it would be three kilobytes.
    assert grown <= 64 << 20, f"{grown} bytes more on the host after the first quarter"
    assert device_after - device <= 64 << 20, f"{device_after - device} bytes more on the device"
    print(
        f"{soak.num_answered} answered, {soak.num_cancelled} cancelled, {soak.num_tokens} tokens; {stats}; "
        f"host {grown / 2**20:+.1f} MiB, device {(device_after - device) / 2**20:+.1f} MiB"
    )
