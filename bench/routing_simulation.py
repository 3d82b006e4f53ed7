"""A simulated cluster that serves a trace: what `bench.routing` runs.

The gateway's own registry, selection and block index choose; the engine's own block pool
and journal stand for each worker's cache. Only time and compute are made up.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from baton.v1.registry_pb2 import WorkerInfo, WorkerLoad, WorkerRole
from engine.kv.block_events import BlockJournal
from engine.kv.block_pool import BlockPool
from services.gateway.registry import Registry, Worker
from services.gateway.routing import DecodeFacts, PrefillFacts
from services.gateway.selection import Hold, Reserved, Selector
from services.worker.block_events import BlockReporter

BLOCK_SIZE = 512
NUM_WORKERS = 8
BEAT_S = 1.0
TPOT_S = 0.02
EXPECTED_OUTPUT_TOKENS = 256

PickDecode = Callable[[Sequence[DecodeFacts], int], int]
PickPrefill = Callable[[Sequence[PrefillFacts], int], int]


@dataclass(frozen=True, slots=True)
class TracePrompt:
    """One row of a trace; `names` are those of its full blocks."""

    at_s: float
    num_tokens: int
    num_output: int
    names: tuple[bytes, ...]

    def hashes(self, block_size: int) -> Sequence[bytes]:
        assert block_size == BLOCK_SIZE
        return self.names


class Cache:
    """A worker's blocks: the engine's pool and journal."""

    def __init__(self, num_blocks: int) -> None:
        journal = BlockJournal(num_blocks)
        self.pool = BlockPool(num_blocks, journal)
        self.reporter = BlockReporter(journal)

    def admit(self, names: Sequence[bytes], num_blocks: int) -> tuple[int, list[int]] | None:
        """Return how many leading blocks were found, and all blocks; None: there is no room."""
        pool = self.pool
        found: list[int] = []
        for name in names:
            block_id = pool.lookup(name)
            if block_id is None:
                break
            found.append(block_id)
        revived = sum(pool.ref_count(block_id) == 0 for block_id in found)
        if num_blocks - len(found) + revived > pool.num_free:
            return None
        for block_id in found:
            pool.share(block_id)
        return len(found), found + pool.allocate(num_blocks - len(found))

    def register(self, names: Sequence[bytes], found: int, block_ids: Sequence[int]) -> None:
        for name, block_id in zip(names[found:], block_ids[found:], strict=False):
            self.pool.register(block_id, name)

    def free(self, block_ids: Sequence[int]) -> None:
        for block_id in reversed(block_ids):
            self.pool.release(block_id)


@dataclass(slots=True)
class SimWorker:
    """A worker, and what it has done: hits in tokens; work in computed, or generated, tokens."""

    listed: Worker
    cache: Cache
    queue: deque[Request] = field(default_factory=deque)
    is_busy: bool = False
    pending_tokens: int = 0
    hits: int = 0
    work: int = 0


@dataclass(slots=True)
class Request:
    """A prompt on its way; `found` counts blocks."""

    prompt: TracePrompt
    decode: SimWorker
    decode_hold: Hold
    decode_blocks: list[int] = field(default_factory=list)
    decode_found: int = 0
    prefill_hold: Hold | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run showed: tokens found, hottest worker over the mean, seconds to the first token."""

    prefill_hits: int
    decode_hits: int
    prefill_hottest: float
    decode_hottest: float
    ttft_s: list[float]


class Simulation:
    """One policy on one trace."""

    def __init__(
        self,
        prompts: Sequence[TracePrompt],
        num_blocks: int,
        tokens_per_s: float,
        decode: PickDecode,
        prefill: PickPrefill,
    ) -> None:
        self._prompts = prompts
        self._tokens_per_s = tokens_per_s
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._registry = Registry("trace", BEAT_S, lambda: self._now)
        self._selector = Selector(self._registry, EXPECTED_OUTPUT_TOKENS, decode=decode, prefill=prefill)
        self._left = len(prompts)
        self._ttft_s: list[float] = []
        self._workers: dict[str, SimWorker] = {}
        self._prefills = [
            self._join(f"p{i}", WorkerRole.WORKER_ROLE_PREFILL, num_blocks) for i in range(NUM_WORKERS)
        ]
        self._decodes = [
            self._join(f"d{i}", WorkerRole.WORKER_ROLE_DECODE, num_blocks) for i in range(NUM_WORKERS)
        ]

    def run(self, progress: Callable[[float], None]) -> Outcome:
        """Serve the whole trace; `progress` gets the share that is done."""
        for prompt in self._prompts:
            self._at(prompt.at_s, partial(self._arrive, prompt))
        for index, worker in enumerate(self._workers.values()):
            self._at(index * BEAT_S / len(self._workers), partial(self._beat, worker))
        for count in itertools.count():
            if not self._left:
                break
            self._now, _, event = heapq.heappop(self._events)
            event()
            if count % 2000 == 0:
                progress(1 - self._left / len(self._prompts))
        return Outcome(
            sum(worker.hits for worker in self._prefills),
            sum(worker.hits for worker in self._decodes),
            _hottest(self._prefills),
            _hottest(self._decodes),
            self._ttft_s,
        )

    def _join(self, worker_id: str, role: WorkerRole, num_blocks: int) -> SimWorker:
        self._registry.register(
            WorkerInfo(
                worker_id=worker_id,
                incarnation="1",
                role=role,
                address="simulated",
                model="trace",
                fingerprint="f",
                num_blocks=num_blocks,
                block_size=BLOCK_SIZE,
                context_length=1 << 20,
                vocab_size=1,
            )
        )
        listed = next(worker for worker in self._registry if worker.info.worker_id == worker_id)
        worker = self._workers[worker_id] = SimWorker(listed, Cache(num_blocks))
        return worker

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _beat(self, worker: SimWorker) -> None:
        blocks, _ = worker.cache.reporter.next()
        free = worker.cache.pool.num_free
        load = WorkerLoad(free_blocks=free, pending_tokens=worker.pending_tokens)
        response = self._registry.beat(*worker.listed.key, load, False, blocks)
        worker.cache.reporter.acknowledge(response.blocks_seq)
        self._at(self._now + BEAT_S, partial(self._beat, worker))

    def _arrive(self, prompt: TracePrompt) -> None:
        picked = self._selector.pick_decode(prompt, EXPECTED_OUTPUT_TOKENS, (), ())
        assert picked is not None
        worker = self._workers[picked[0].info.worker_id]
        worker.queue.append(Request(prompt, worker, picked[1]))
        self._reserve(worker)

    def _reserve(self, worker: SimWorker) -> None:
        """Give a decode worker's waiting requests their blocks, in order, as far as there is room."""
        while worker.queue:
            request = worker.queue[0]
            prompt = request.prompt
            admitted = worker.cache.admit(prompt.names, _blocks(prompt.num_tokens + prompt.num_output))
            if admitted is None:
                return
            worker.queue.popleft()
            request.decode_found, request.decode_blocks = admitted
            worker.hits += min(request.decode_found * BLOCK_SIZE, prompt.num_tokens)
            picked = self._selector.pick_prefill(prompt, Reserved(), (), ())
            assert picked is not None
            request.prefill_hold = picked[1]
            prefill = self._workers[picked[0].info.worker_id]
            prefill.queue.append(request)
            prefill.pending_tokens += prompt.num_tokens
            self._compute(prefill)

    def _compute(self, worker: SimWorker) -> None:
        """Start a prefill worker's next prompt, if it is idle."""
        if worker.is_busy or not worker.queue:
            return
        request = worker.queue.popleft()
        prompt = request.prompt
        admitted = worker.cache.admit(prompt.names, _blocks(prompt.num_tokens))
        assert admitted is not None, "a prompt is larger than a worker's cache"
        found, block_ids = admitted
        hits = min(found * BLOCK_SIZE, prompt.num_tokens - 1)
        worker.is_busy = True
        worker.hits += hits
        worker.work += prompt.num_tokens - hits
        compute_s = (prompt.num_tokens - hits) / self._tokens_per_s
        self._at(self._now + compute_s, partial(self._computed, worker, request, found, block_ids))

    def _computed(self, worker: SimWorker, request: Request, found: int, block_ids: list[int]) -> None:
        prompt, decode = request.prompt, request.decode
        assert request.prefill_hold is not None
        request.prefill_hold.release()
        self._ttft_s.append(self._now - prompt.at_s)
        worker.cache.register(prompt.names, found, block_ids)
        worker.cache.free(block_ids)
        worker.pending_tokens -= prompt.num_tokens
        worker.is_busy = False
        decode.cache.register(prompt.names, request.decode_found, request.decode_blocks)
        decode.work += prompt.num_output
        self._at(self._now + prompt.num_output * TPOT_S, partial(self._finish, request))
        self._compute(worker)

    def _finish(self, request: Request) -> None:
        self._left -= 1
        request.decode_hold.release()
        request.decode.cache.free(request.decode_blocks)
        self._reserve(request.decode)


def _blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


def _hottest(workers: Sequence[SimWorker]) -> float:
    return max(worker.work for worker in workers) / statistics.fmean(worker.work for worker in workers)
