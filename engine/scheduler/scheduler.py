"""The one scheduler of prefill, decode and everything between.

There are no phases: each step runs tokens[num_computed : num_computed + n] of some
requests, and a request that reaches the end of its tokens is sampled.

    schedule()  1 decode rows, one token each, most urgent first; when blocks run out
                  the least urgent request is preempted (recomputed later)
                2 admission from one queue by priority, then arrival. The head blocks
                  those behind it, so nobody starves. Requests to compute and requests
                  for a reservation stand in the same queue
                3 chunks of prompts with what is left of the budget (chunks.py)
    commit()    advance, report blocks, cache full ones, append tokens, finish

A request is admitted with blocks for all its tokens and the next one, and only if
a spare block remains for each request that may grow; so prompts never run out of
blocks half way, and admission does not lead straight to preemption.
"""

from __future__ import annotations

import logging

from engine.config import EngineConfig
from engine.errors import BlocksWithdrawnError, EngineError, OutOfBlocksError, QueueFullError
from engine.events import Event, RequestCancelled, RequestFailed, ReservationGranted, TokenSampled
from engine.kv.block_events import BlockJournal
from engine.kv.kv_manager import KVManager
from engine.kv.layout import CacheGroup
from engine.request import Request, RequestStatus
from engine.scheduler.chunks import cut_chunks
from engine.scheduler.counters import Counters
from engine.scheduler.filled_blocks import FilledBlocks
from engine.scheduler.finish import finish_reason
from engine.scheduler.step_clock import StepClock
from engine.scheduler.urgency_list import UrgencyList
from engine.stats import EngineStats
from engine.step import BlockCopy, SampledToken, ScheduledRow, SchedulerOutput, StepResult

_log = logging.getLogger(__name__)


class Scheduler:
    """Owns every request from `add` until it ends. Not thread-safe: the engine thread alone calls it."""

    def __init__(
        self,
        config: EngineConfig,
        groups: tuple[CacheGroup, ...],
        num_blocks: int,
        context_length: int,
        eos_token_ids: frozenset[int],
        *,
        first_block: int = 0,
    ) -> None:
        self._config = config
        self._kv = KVManager(groups, num_blocks, config.prefix_cache, first_block=first_block)
        self._context_length = context_length
        self._eos_token_ids = eos_token_ids
        # So that each running request can have a token in each step, and none waits for ever.
        self._max_running = min(config.max_running, config.max_step_tokens)
        # More spare blocks than this would keep memory idle for growth that is far away.
        self._max_spare = max(1, num_blocks // 8)
        self._requests: dict[str, Request] = {}
        self._queue = UrgencyList()
        self._queued_tokens = 0
        self._running = UrgencyList()
        self._num_reserved = 0
        self._filled = FilledBlocks(groups)
        self._shortest_first = False
        self._step = 0
        self._events: list[Event] = []
        self._finished_ids: list[str] = []
        self._ended_ids: list[str] = []
        self._counters = Counters()
        self._clock = StepClock()

    # Requests come and go.

    @property
    def num_queued(self) -> int:
        """Requests that wait for blocks or a place in the batch."""
        return len(self._queue)

    @property
    def block_journal(self) -> BlockJournal:
        """What the prefix cache gained and lost; any thread may read it."""
        return self._kv.journal

    @property
    def request_ids(self) -> tuple[str, ...]:
        """All requests that have not ended."""
        return tuple(self._requests)

    def add(self, request: Request) -> None:
        """Queue a request whose status is WAITING (to be computed here) or QUEUED (for a reservation)."""
        assert request.status in (RequestStatus.WAITING, RequestStatus.QUEUED), request.status
        assert request.request_id not in self._requests, f"{request.request_id} is here already"
        self._requests[request.request_id] = request
        self._enqueue(request)

    def commit_reservation(self, request_id: str, first_token: int) -> None:
        """Let a reserved request join the batch: the KV of all its tokens has arrived.

        A request that ended in the meantime is no error: commands cross. If `first_token` ends
        the answer, the request ends here.
        """
        request = self._requests.get(request_id)
        if request is None or request.status is not RequestStatus.RESERVED:
            _log.warning("commit of %s, which holds no reservation, was dropped", request_id)
            return
        self._num_reserved -= 1
        request.num_computed_tokens = request.num_tokens
        self._kv.register(request)
        request.token_ids.append(first_token)
        request.status = RequestStatus.RUNNING
        self._running.add(request)
        if finish_reason(request, self._eos_token_ids, self._context_length) is not None:
            self.cancel(request_id)

    def compute_reservation(self, request_id: str) -> None:
        """Let a reserved request join the batch as a prompt to compute here, in the blocks that it has.

        A request that ended in the meantime is no error: commands cross.
        """
        request = self._requests.get(request_id)
        if request is None or request.status is not RequestStatus.RESERVED:
            _log.warning("compute of %s, which holds no reservation, was dropped", request_id)
            return
        self._num_reserved -= 1
        request.status = RequestStatus.RUNNING
        self._running.add(request)

    def cancel(self, request_id: str) -> None:
        """End a request in any state, a held one too, and free its blocks. Idempotent."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request)
            self._events.append(RequestCancelled(request_id))

    def fail(self, request_id: str, error: EngineError) -> None:
        """End a request with an error and free its blocks. Idempotent."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request)
            self._events.append(RequestFailed(request_id, error))

    def fork(self, parent_id: str, child: Request) -> None:
        """Start a request from the state of a decoding one; they share blocks until one writes.

        The child must have the parent's tokens. It joins the batch at once.

        Raises:
            QueueFullError: the batch is full.
        """
        parent = self._requests[parent_id]
        assert parent.status is RequestStatus.RUNNING, f"{parent_id} is {parent.status.value}"
        assert parent.num_uncomputed_tokens == 1, f"{parent_id} does not decode yet"
        assert child.token_ids == parent.token_ids, "a child starts with its parent's tokens"
        if self._num_places == 0:
            raise QueueFullError(f"max_running: the batch is full with {self._max_running} requests")
        self._kv.fork(parent, child)
        self._requests[child.request_id] = child
        child.status = RequestStatus.RUNNING
        self._running.add(child)

    # A step.

    def schedule(self) -> SchedulerOutput:
        """Choose what the next step runs; grants reservations too. The rows may be empty."""
        self._step += 1
        copies: list[BlockCopy] = []
        for request in tuple(self._running):
            self._is_withdrawn(request)
        rows = self._schedule_decode(copies)
        self._admit()
        rows += self._schedule_chunks(rows)
        if not rows:
            return SchedulerOutput(self._step, ())
        self._clock.begin(self._step, rows)
        finished, self._finished_ids = tuple(self._finished_ids), []
        return SchedulerOutput(self._step, tuple(rows), tuple(copies), finished)

    def commit(self, output: SchedulerOutput, result: StepResult) -> None:
        """Take in what a step computed. Rows whose request was ended or preempted meanwhile are dropped."""
        self._clock.end(output)
        for row in output.rows:
            request = row.request
            if request.status is not RequestStatus.RUNNING or request.num_computed_tokens != row.start:
                continue
            request.num_computed_tokens = row.start + row.num_tokens
            self._counters.computed_tokens += row.num_tokens
            self._kv.register(request)
            if request.hold_blocks:
                self._events += self._filled.advance(request)
            if row.sample:
                self._append(request, result.sampled[request.request_id])

    def abandon(self, output: SchedulerOutput, error: EngineError) -> None:
        """Fail the requests of a step that the runner did not finish."""
        self._clock.drop(output.step)
        for row in output.rows:
            self.fail(row.request.request_id, error)
        # The runner may not have got so far as to drop these.
        self._finished_ids += output.finished_request_ids

    def take_events(self) -> list[Event]:
        """Return the events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def take_ended(self) -> list[str]:
        """Return the ids of requests that ended, holding nothing, since the last call."""
        ended, self._ended_ids = self._ended_ids, []
        return ended

    # Parts of a step.

    def _is_withdrawn(self, request: Request) -> bool:
        """End a request whose given blocks may not be written any more."""
        if request.given is None or request.given.writable():
            return False
        withdrawn = BlocksWithdrawnError("the worker that gave the blocks took them back")
        self.fail(request.request_id, withdrawn)
        return True

    def _schedule_decode(self, copies: list[BlockCopy]) -> list[ScheduledRow]:
        rows = []
        for request in tuple(self._running):
            # One further up may have preempted this one.
            if request.status is not RequestStatus.RUNNING or request.num_uncomputed_tokens != 1:
                continue
            if self._make_room(request, copies):
                rows.append(ScheduledRow(request, request.num_computed_tokens, 1, sample=True))
        return rows

    def _schedule_chunks(self, decode: list[ScheduledRow]) -> list[ScheduledRow]:
        """Share what decode left of the budget; prompts have their blocks since admission."""
        if len(decode) == len(self._running):
            return []
        decoding = {row.request.request_id for row in decode}
        prompts = [request for request in self._running if request.request_id not in decoding]
        for request in prompts:
            self._adopt(request)
        budget = self._config.max_step_tokens - len(decode)
        chunks = cut_chunks(
            prompts, budget, self._config.max_chunk_tokens, self._kv.unit, self._shortest_first
        )
        self._shortest_first = not self._shortest_first
        rows = [
            ScheduledRow(request, request.num_computed_tokens, n, sample=n == request.num_uncomputed_tokens)
            for request, n in chunks
        ]
        # One-token rows first, so that the decode part of a batch is one run.
        rows.sort(key=lambda row: row.num_tokens > 1)
        return rows

    def _admit(self) -> None:
        """Admit from the head of the queue while there is room; grant reservations."""
        while self._queue and self._num_places:
            request = self._queue.head
            if self._is_withdrawn(request):
                continue
            reserves = request.status is RequestStatus.QUEUED
            num_slots = request.num_tokens + (not request.hold_blocks)
            if request.given is None and not self._kv.fits(num_slots):
                self.fail(request.request_id, self._outgrown(request))
                continue
            try:
                self._kv.admit(request, num_slots, leave=1, spare=self._spare())
            except OutOfBlocksError:
                return
            self._dequeue(request)
            if request.num_preemptions == 0:
                request.num_cached_tokens = request.num_computed_tokens
                self._counters.prefix_query_tokens += request.num_tokens
                self._counters.prefix_hit_tokens += request.num_cached_tokens
            if reserves:
                request.status = RequestStatus.RESERVED
                self._num_reserved += 1
                self._grant(request)
            else:
                request.status = RequestStatus.RUNNING
                self._running.add(request)
                if request.hold_blocks:
                    self._events += self._filled.advance(request)

    @property
    def _num_places(self) -> int:
        """Requests that the batch can still take; a reservation holds the place that it will need."""
        return self._max_running - len(self._running) - self._num_reserved

    def _spare(self) -> int:
        growing = self._num_reserved + sum(not request.hold_blocks for request in self._running)
        return min(growing, self._max_spare)

    def _grant(self, request: Request) -> None:
        block_ids = tuple(tuple(ids) for ids in request.block_ids)
        self._events.append(ReservationGranted(request.request_id, block_ids, request.num_cached_tokens))

    def _adopt(self, request: Request) -> None:
        gained = self._kv.adopt(request, leave=1)
        if gained and request.num_preemptions == 0:
            request.num_cached_tokens += gained
            self._counters.prefix_hit_tokens += gained
        if gained and request.hold_blocks:
            self._events += self._filled.advance(request)

    def _make_room(self, request: Request, copies: list[BlockCopy]) -> bool:
        """Make the next slot writable; preempts the least urgent, which may be the request itself: False."""
        num_slots = request.num_tokens
        while True:
            try:
                copies += self._kv.grow(request, num_slots)
                return True
            except OutOfBlocksError:
                if not self._kv.fits(num_slots):
                    self.fail(request.request_id, self._outgrown(request))
                    return False
            victim = next(r for r in reversed(self._running) if not r.hold_blocks)
            self._preempt(victim)
            if victim is request:
                return False

    def _outgrown(self, request: Request) -> OutOfBlocksError:
        return OutOfBlocksError(
            f"{request.num_tokens} tokens and the next one do not fit the pool of "
            f"{self._kv.num_blocks} KV blocks (kv_bytes)"
        )

    def _preempt(self, request: Request) -> None:
        self._running.remove(request)
        self._kv.free(request)
        request.status = RequestStatus.WAITING
        request.num_preemptions += 1
        self._counters.preemptions += 1
        self._enqueue(request)

    def _append(self, request: Request, token: SampledToken) -> None:
        if request.grammar is not None and request.grammar.error is not None:
            self.fail(request.request_id, request.grammar.error)
            return
        request.token_ids.append(token.token_id)
        request.num_sampled_tokens += 1
        self._counters.sampled_tokens += 1
        reason = finish_reason(request, self._eos_token_ids, self._context_length)
        self._events.append(TokenSampled(request.request_id, token, reason, request.num_cached_tokens))
        if reason is None and request.num_sampled_tokens != request.max_new_tokens:
            return
        if request.hold_blocks:
            self._running.remove(request)
            request.status = RequestStatus.FINISHED
            self._finished_ids.append(request.request_id)
        else:
            self._end(request)

    # Bookkeeping.

    def _enqueue(self, request: Request) -> None:
        self._queue.add(request)
        if request.status is RequestStatus.WAITING:
            self._queued_tokens += request.num_tokens

    def _dequeue(self, request: Request) -> None:
        self._queue.remove(request)
        if request.status is RequestStatus.WAITING:
            self._queued_tokens -= request.num_tokens

    def _end(self, request: Request) -> None:
        """Take a request out of wherever it is; it holds nothing afterwards."""
        del self._requests[request.request_id]
        match request.status:
            case RequestStatus.WAITING | RequestStatus.QUEUED:
                self._dequeue(request)
            case RequestStatus.RESERVED:
                self._num_reserved -= 1
                self._kv.free(request)
            case RequestStatus.RUNNING:
                self._running.remove(request)
                self._kv.free(request)
            case RequestStatus.FINISHED:
                self._kv.free(request)
        request.status = RequestStatus.FINISHED
        self._kv.forget(request)
        self._filled.forget(request)
        self._finished_ids.append(request.request_id)
        self._ended_ids.append(request.request_id)

    def stats(self) -> EngineStats:
        """Return a picture of now."""
        free = self._kv.num_free
        return EngineStats(
            num_blocks=self._kv.num_blocks,
            free_blocks=free,
            used_blocks=self._kv.num_blocks - free,
            running=len(self._running),
            waiting=len(self._queue),
            reserved=self._num_reserved,
            pending_tokens=self._queued_tokens + sum(r.num_uncomputed_tokens for r in self._running),
            computed_tokens=self._counters.computed_tokens,
            sampled_tokens=self._counters.sampled_tokens,
            prefix_query_tokens=self._counters.prefix_query_tokens,
            prefix_hit_tokens=self._counters.prefix_hit_tokens,
            preemptions=self._counters.preemptions,
            steps=self._step,
            step_times=self._clock.times(),
        )

    def check_invariants(self) -> None:
        """Raise AssertionError unless requests, lists and blocks agree with each other."""
        self._kv.check_invariants()
        by_status = {
            status: [r for r in self._requests.values() if r.status is status] for status in RequestStatus
        }
        waiting = by_status[RequestStatus.WAITING] + by_status[RequestStatus.QUEUED]
        assert {r.request_id for r in self._queue} == {r.request_id for r in waiting}, (
            "queue and status differ"
        )
        assert {r.request_id for r in self._running} == {
            r.request_id for r in by_status[RequestStatus.RUNNING]
        }, "batch and status differ"
        assert self._num_reserved == len(by_status[RequestStatus.RESERVED]), "reservations miscounted"
        assert self._num_places >= 0, "the batch is too large"
        assert self._queued_tokens == sum(r.num_tokens for r in by_status[RequestStatus.WAITING])
        for request in self._requests.values():
            assert bool(request.block_ids) == (
                request.status not in (RequestStatus.WAITING, RequestStatus.QUEUED)
            )
