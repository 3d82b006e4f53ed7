"""The workers that this gateway knows.

A worker is (id, incarnation): one reborn under the same id is another worker, and
the old one is lost. Three missed beats and a worker is lost too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Protocol

from baton.v1.kv_pb2 import KvPeer
from baton.v1.registry_pb2 import BeatResponse, BlockEvents, WorkerInfo, WorkerLoad, WorkerRole
from services.common.errors import BatonError, ErrorReason
from services.common.logs import log
from services.gateway.compute_pace import ComputePace
from services.gateway.prefix_index import KnownBlocks
from services.gateway.routing import may_fill
from services.gateway.sampling import bad_field

WorkerKey = tuple[str, str]

MISSED_BEATS = 3

_PREFILL_ROLES = (WorkerRole.WORKER_ROLE_PREFILL, WorkerRole.WORKER_ROLE_BOTH)
_DECODE_ROLES = (WorkerRole.WORKER_ROLE_DECODE, WorkerRole.WORKER_ROLE_BOTH)
_REQUIRED = (
    "worker_id",
    "incarnation",
    "role",
    "address",
    "model",
    "fingerprint",
    "num_blocks",
    "block_size",
    "context_length",
    "vocab_size",
)

_logger = logging.getLogger(__name__)


class Worker:
    """One incarnation of a worker.

    Attributes:
        load: as last reported.
        is_draining: takes no new requests.
        is_suspect: a connection to it failed since its last beat; others are preferred.
        blocks: what is known of its prefix cache.
        pace: at which it computes prompts.
        held_blocks, new_blocks, held_tokens, new_tokens, last_pick: see routing.
    """

    def __init__(self, info: WorkerInfo, now: float) -> None:
        self.info = info
        self.load = WorkerLoad(free_blocks=info.num_blocks)
        self.last_beat = now
        self.is_draining = False
        self.is_suspect = False
        self.held_blocks = self.new_blocks = 0
        self.held_tokens = self.new_tokens = 0
        self.last_pick = 0
        self.blocks = KnownBlocks(info.num_blocks)
        self.pace = ComputePace()

    @property
    def key(self) -> WorkerKey:
        """Worker id and incarnation."""
        return self.info.worker_id, self.info.incarnation

    @property
    def does_prefill(self) -> bool:
        """Whether it serves PrefillService."""
        return self.info.role in _PREFILL_ROLES

    @property
    def does_decode(self) -> bool:
        """Whether it serves DecodeService."""
        return self.info.role in _DECODE_ROLES


class RegistryListener(Protocol):
    """Is told, within the call that caused it, who comes and goes."""

    def on_joined(self, worker: Worker) -> None:
        """A worker was listed."""

    def on_lost(self, worker: Worker) -> None:
        """A worker left, was replaced, or fell silent; it is no longer listed."""


class Registry:
    """Workers by id, one incarnation each.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, model: str, beat_interval_s: float, clock: Callable[[], float]) -> None:
        self._model = model
        self._beat_interval_s = beat_interval_s
        self._clock = clock
        self._workers: dict[str, Worker] = {}
        self._listeners: list[RegistryListener] = []
        self._change = asyncio.Event()

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def listen(self, listener: RegistryListener) -> None:
        """Tell `listener` of every later change."""
        self._listeners.append(listener)

    async def changed(self) -> None:
        """Wait until a worker joins, leaves or reports."""
        await self._change.wait()

    def silent_ms(self, worker: Worker) -> int:
        """Return the time since its last beat."""
        return int((self._clock() - worker.last_beat) * 1000)

    def register(self, info: WorkerInfo) -> Worker:
        """List a worker; an older incarnation of it is lost.

        Raises:
            BatonError: INVALID_ARGUMENT (a field is missing, or another model), LAYOUT_MISMATCH.
        """
        for name in _REQUIRED:
            if not getattr(info, name):
                raise bad_field(f"worker.{name}", "must be set")
        if info.model != self._model:
            raise bad_field("worker.model", f"this gateway serves {self._model!r}, got {info.model!r}")
        old = self._workers.get(info.worker_id)
        if old is not None and old.info.incarnation == info.incarnation:
            old.last_beat = self._clock()
            return old
        for other in self._workers.values():
            if other is not old and other.info.fingerprint != info.fingerprint:
                raise BatonError(
                    ErrorReason.LAYOUT_MISMATCH,
                    f"worker.fingerprint: {info.fingerprint!r} differs from {other.info.fingerprint!r} of "
                    f"worker {other.info.worker_id!r}; model, dtype and block size must be the same",
                    field="worker.fingerprint",
                )
        if old is not None:
            self.drop(old, "replaced by a new incarnation")
        worker = Worker(info, self._clock())
        self._workers[info.worker_id] = worker
        log(
            _logger,
            logging.INFO,
            "worker joined",
            worker=info.worker_id,
            incarnation=info.incarnation,
            role=WorkerRole.Name(info.role),
            address=info.address,
        )
        for listener in self._listeners:
            listener.on_joined(worker)
        self._notify()
        return worker

    def beat(
        self,
        worker_id: str,
        incarnation: str,
        load: WorkerLoad,
        draining: bool,
        blocks: BlockEvents | None = None,
    ) -> BeatResponse:
        """Take a report; returns what the worker should know.

        Raises:
            BatonError: WORKER_NOT_FOUND: it must register (again).
        """
        worker = self._workers.get(worker_id)
        if worker is None or worker.info.incarnation != incarnation:
            raise BatonError(
                ErrorReason.WORKER_NOT_FOUND,
                f"worker {worker_id!r} ({incarnation}) is not listed; register again",
            )
        worker.load = load
        worker.last_beat = self._clock()
        worker.is_draining = draining
        worker.is_suspect = False
        worker.new_blocks = worker.new_tokens = 0
        if blocks is not None:
            worker.blocks.apply(blocks)
        worker.blocks.on_beat()
        self._notify()
        return BeatResponse(
            receivers=self.receivers(worker), blocks_seq=worker.blocks.seq, sender_keys=self.sender_keys()
        )

    def receivers(self, sender: Worker) -> list[KvPeer]:
        """Return those that a worker may send blocks to."""
        return [
            worker.info.kv_peer
            for worker in self._workers.values()
            if worker.does_decode
            and worker is not sender
            and may_fill(sender, worker, same=False, is_short=False)
        ]

    def sender_keys(self) -> list[str]:
        """Return the CURVE keys of those that send blocks."""
        workers = self._workers.values()
        return [w.info.curve_public_key for w in workers if w.does_prefill and w.info.curve_public_key]

    def deregister(self, worker_id: str, incarnation: str) -> None:
        """Take a worker off the list. Idempotent; another incarnation's leave is ignored."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.info.incarnation == incarnation:
            self.drop(worker, "left")

    def suspect(self, worker: Worker) -> None:
        """Prefer others to this worker until it beats again, or `trust`."""
        worker.is_suspect = True

    def trust(self, worker: Worker) -> None:
        """End suspicion: a connection to the worker was made."""
        if worker.is_suspect:
            worker.is_suspect = False
            self._notify()

    def sweep(self) -> None:
        """Drop workers that missed three beats."""
        limit = self._clock() - MISSED_BEATS * self._beat_interval_s
        for worker in list(self._workers.values()):
            if worker.last_beat < limit:
                self.drop(worker, f"missed {MISSED_BEATS} beats")

    async def run_sweeps(self) -> None:
        """Sweep for ever, several times a beat."""
        while True:
            await asyncio.sleep(self._beat_interval_s / 4)
            self.sweep()

    def drop(self, worker: Worker, why: str) -> None:
        """Take a worker off the list. Idempotent."""
        if self._workers.get(worker.info.worker_id) is not worker:
            return
        del self._workers[worker.info.worker_id]
        log(
            _logger,
            logging.WARNING,
            "worker lost",
            worker=worker.info.worker_id,
            incarnation=worker.info.incarnation,
            why=why,
        )
        for listener in self._listeners:
            listener.on_lost(worker)
        self._notify()

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
