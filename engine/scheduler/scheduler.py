"""The one scheduler of prefill, decode and everything between.

There are no phases: each step runs tokens[num_computed : num_computed + n] of some
requests, and a request that reaches the end of its tokens is sampled.

    schedule()  1 decode rows, one token each, most urgent first; when blocks run out
                  the least urgent request is preempted: swapped to the host, or recomputed later
                  (decode_rows.py)
                2 admission from one queue by priority, then arrival. The head blocks
                  those behind it, so nobody starves. Requests to compute and requests
                  for a reservation stand in the same queue
                3 chunks of prompts with what is left of the budget (chunks.py)
    commit()    report blocks, cache full ones, append tokens, finish

A request is admitted with blocks for all its tokens and the next one, and only if
a spare block remains for each request that may grow; so prompts never run out of
blocks half way, and admission does not lead straight to preemption.

A step may be scheduled before the one ahead of it is committed. So requests advance
when they are scheduled, by one *pending* token where they are sampled; commit says
which token it was. A request that turns out to have ended wastes its row in the step
behind, and that is all: blocks let go of meanwhile are nobody's until that step is
over. So whoever is short of blocks gets those of a preempted request a step later,
and a preempted request, which keeps the token under way, has it before it runs again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from engine.config import EngineConfig
from engine.errors import EngineError, QueueFullError, SamplingError
from engine.events import Event, TokenSampled
from engine.kv.block_events import BlockJournal
from engine.kv.host_tier import NO_HOST_SLOTS, HostSlots
from engine.kv.kv_manager import KVManager
from engine.kv.layout import CacheGroup
from engine.request import Request, RequestStatus
from engine.scheduler.admission import Admission
from engine.scheduler.batch import Batch
from engine.scheduler.chunks import cut_chunks
from engine.scheduler.claims import Claims
from engine.scheduler.counters import Counters
from engine.scheduler.decode_rows import DecodeRows
from engine.scheduler.filled_blocks import FilledBlocks
from engine.scheduler.finish import finish_reason
from engine.scheduler.outbox import Outbox
from engine.scheduler.roster import Roster
from engine.scheduler.step_clock import StepClock
from engine.scheduler.urgency_list import urgency
from engine.stats import EngineStats
from engine.step import BlockCopy, LayersWritten, SampledToken, ScheduledRow, SchedulerOutput, StepResult

_log = logging.getLogger(__name__)

# Looked up once a row and step.
_RUNNING, _WAITING, _FINISHED = RequestStatus.RUNNING, RequestStatus.WAITING, RequestStatus.FINISHED


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
        host_slots: HostSlots = NO_HOST_SLOTS,
    ) -> None:
        self._config = config
        self._kv = KVManager(
            groups,
            num_blocks,
            config.prefix_cache,
            prompts_only=config.batch_invariant,
            first_block=first_block,
            host_slots=host_slots,
        )
        self._context_length = context_length
        self._eos_token_ids = eos_token_ids
        self._filled = FilledBlocks(groups)
        self._outbox = Outbox()
        # So that each running request can have a token in each step, and none waits for ever;
        # more spare blocks than an eighth would keep memory idle for growth that is far away.
        batch = Batch(min(config.max_running, config.max_step_tokens), max(1, num_blocks // 8))
        self._roster = Roster(self._kv, batch, self._filled, self._outbox, context_length)
        self._counters = Counters()
        self._admission = Admission(self._kv, self._roster, self._filled, self._outbox, self._counters)
        self._decode_rows = DecodeRows(self._kv, self._roster, self._admission, self._counters)
        self._queue = self._roster.queue
        self._running = self._roster.running
        self._under_way: dict[int, SchedulerOutput] = {}
        self._shortest_first = False
        self._step = 0
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
        return tuple(self._roster.requests)

    def add(self, request: Request) -> None:
        """Queue a request whose status is WAITING (to be computed here) or QUEUED (for a reservation)."""
        self._roster.add(request)

    def commit_reservation(self, request_id: str, first_token: int) -> None:
        """Let a reserved request join the batch: the KV of all its tokens has arrived.

        A request that ended in the meantime is no error: commands cross. If `first_token` ends
        the answer, the request ends here.
        """
        request = self._roster.reserved(request_id)
        if request is None:
            _log.warning("commit of %s, which holds no reservation, was dropped", request_id)
            return
        request.num_computed_tokens = request.num_tokens
        self._kv.register(request, request.num_tokens)
        request.token_ids.append(first_token)
        self._roster.start(request)
        if finish_reason(request, self._eos_token_ids, self._context_length) is not None:
            self.cancel(request_id)

    def compute_reservation(self, request_id: str) -> None:
        """Let a reserved request join the batch as a prompt to compute here, in the blocks that it has.

        A request that ended in the meantime is no error: commands cross.
        """
        request = self._roster.reserved(request_id)
        if request is None:
            _log.warning("compute of %s, which holds no reservation, was dropped", request_id)
            return
        self._roster.start(request)

    def cancel(self, request_id: str) -> None:
        """End a request in any state, a held one too, and free its blocks. Idempotent."""
        self._roster.cancel(request_id)

    def fail(self, request_id: str, error: EngineError) -> None:
        """End a request with an error and free its blocks. Idempotent."""
        self._roster.fail(request_id, error)

    def fork(self, parent_id: str, child: Request) -> None:
        """Start a request from the state of a decoding one; they share blocks until one writes.

        The child must have the parent's tokens. It joins the batch at once.

        Raises:
            QueueFullError: the batch is full.
        """
        parent = self._roster.requests[parent_id]
        assert parent.status is RequestStatus.RUNNING, f"{parent_id} is {parent.status.value}"
        assert parent.num_uncomputed_tokens == 1, f"{parent_id} does not decode yet"
        assert child.token_ids == parent.token_ids, "a child starts with its parent's tokens"
        if self._running.num_places == 0:
            raise QueueFullError(f"max_running: the batch is full with {self._running.max_running} requests")
        # One token at least is left to compute: what the parent has under way draws for the parent alone.
        child.num_computed_tokens = child.num_tokens - 1
        self._kv.fork(parent, child)
        self._roster.join(child)

    # A step.

    def schedule(self) -> SchedulerOutput:
        """Choose what the next step runs; grants reservations too.

        Steps that are not empty are launched and committed (or abandoned) in order; at most one is
        under way when the next one is scheduled.
        """
        self._step += 1
        copies: list[BlockCopy] = []
        rows, prompts = self._decode_rows.schedule(copies)
        prompts += self._admission.admit()
        rows += self._schedule_chunks(prompts, self._config.max_step_tokens - len(rows))
        if rows or self._kv.admission_waits:
            self._kv.write_back()
        if not rows and not self._kv.host.has_moves:
            return SchedulerOutput(self._step, ())
        self._clock.begin(self._step, rows)
        outs, ins = self._kv.begin_step(self._step, rows)
        output = SchedulerOutput(
            self._step, tuple(rows), tuple(copies), self._outbox.take_dropped(), outs, ins
        )
        self._under_way[self._step] = output
        return output

    def follow(self, output: SchedulerOutput, layers: Sequence[LayersWritten]) -> None:
        """Tell of blocks that may be read layer by layer, while the step is under way."""
        self._outbox.events += self._filled.ahead(output.rows, layers)

    def commit(self, output: SchedulerOutput, result: StepResult) -> None:
        """Take in what a step computed. Rows whose request has ended meanwhile are dropped."""
        self._clock.end(output)
        self._land(output)
        if result.prompt_logprobs:
            _note_prompt_logprobs(output, result)
        counters, events, ending_ids = self._counters, self._outbox.events, self._eos_token_ids
        hash_unit, sampled = self._kv.hash_unit, result.sampled
        for request, start, num_tokens, sample, _ in output.rows:
            status = request.status
            if status is _FINISHED:
                continue
            counters.computed_tokens += num_tokens
            end = start + num_tokens
            token = sampled[request.request_id] if sample else None
            if isinstance(token, SamplingError):
                # Its KV may be what is wrong: nobody else is to have it.
                self._kv.distrust(request)
                self.fail(request.request_id, token)
                continue
            # A preempted one has lost what it computed, but not what it drew.
            if status is _RUNNING and (num_tokens > 1 or end % hash_unit == 0 or request.hold_blocks):
                self._kv.register(request, end)
                if request.hold_blocks:
                    events += self._filled.advance(request, end)
            if token is None:
                continue
            if request.grammar is not None and request.grammar.error is not None:
                self.fail(request.request_id, request.grammar.error)
                continue
            token_ids = request.token_ids
            token_ids.append(token.token_id)
            request.num_sampled_tokens += 1
            counters.sampled_tokens += 1
            if status is _WAITING:
                self._queue.num_tokens += 1
            if (
                len(token_ids) >= request.token_limit
                or token.token_id in ending_ids
                or request.sampling.stop_token_ids
            ):
                self._append_perhaps_last(request, token)
            else:
                events.append(TokenSampled(request.request_id, token, None, request.num_cached_tokens))

    def abandon(self, output: SchedulerOutput, error: EngineError) -> None:
        """Fail the requests of a step that the runner did not finish."""
        self._clock.drop(output.step)
        spoilt = self._kv.abandon_step(output.step)
        self._land(output)
        requests = self._roster.requests
        for request in [row.request for row in output.rows] + spoilt:
            # Another request may have the id by now.
            if requests.get(request.request_id) is request:
                self.fail(request.request_id, error)
        # The runner may not have got so far as to drop these.
        self._outbox.dropped_ids += [i for i in output.finished_request_ids if i not in requests]

    def _land(self, output: SchedulerOutput) -> None:
        """A step is not under way any more."""
        del self._under_way[output.step]
        self._kv.end_step(output.step)
        self._roster.land(output.rows)

    def take_events(self) -> list[Event]:
        """Return the events since the last call, in order."""
        return self._outbox.take_events()

    def take_ended(self) -> list[str]:
        """Return the ids of requests that ended, holding nothing, since the last call."""
        return self._outbox.take_ended()

    # Parts of a step.

    def _schedule_chunks(self, prompts: list[Request], budget: int) -> list[ScheduledRow]:
        """Share what decode left of the budget; prompts have their blocks since admission."""
        if not prompts:
            return []
        prompts.sort(key=urgency)
        for request in prompts:
            self._admission.adopt(request)
        chunks = cut_chunks(
            prompts,
            budget,
            self._config.max_chunk_tokens,
            self._kv.unit,
            self._shortest_first,
            Claims(self._kv, (row for output in self._under_way.values() for row in output.rows)),
            answers_by_one=self._config.batch_invariant,
        )
        self._shortest_first = not self._shortest_first
        # One-token rows first, so that the decode part of a batch is one run.
        chunks.sort(key=lambda chunk: chunk[1] > 1)
        return [self._row(request, num_tokens) for request, num_tokens in chunks]

    def _row(self, request: Request, num_tokens: int) -> ScheduledRow:
        """Schedule the next tokens of a request; it advances at once."""
        start = request.num_computed_tokens
        sample = num_tokens == request.num_uncomputed_tokens
        row = ScheduledRow(request, start, num_tokens, sample, pending=request.num_pending_tokens > 0)
        request.num_computed_tokens = start + num_tokens
        request.num_pending_tokens += sample
        request.num_rows_under_way += 1
        return row

    def _append_perhaps_last(self, request: Request, token: SampledToken) -> None:
        """Tell of a token that is the last one, or may be."""
        reason = finish_reason(request, self._eos_token_ids, self._context_length)
        self._outbox.events.append(TokenSampled(request.request_id, token, reason, request.num_cached_tokens))
        if reason is not None or len(request.token_ids) >= request.token_limit:
            if request.hold_blocks:
                self._roster.hold(request)
            else:
                self._roster.end(request)

    # The picture.

    def stats(self) -> EngineStats:
        """Return a picture of now."""
        free = self._kv.num_free
        return EngineStats(
            num_blocks=self._kv.num_blocks,
            free_blocks=free,
            used_blocks=self._kv.num_blocks - free,
            running=len(self._running),
            waiting=len(self._queue),
            reserved=self._running.num_reserved,
            pending_tokens=self._roster.num_uncomputed_tokens,
            computed_tokens=self._counters.computed_tokens,
            sampled_tokens=self._counters.sampled_tokens,
            prefix_query_tokens=self._counters.prefix_query_tokens,
            prefix_hit_tokens=self._counters.prefix_hit_tokens,
            preemptions=self._counters.preemptions,
            steps=self._step,
            step_times=self._clock.times(),
            swapped=len(self._kv.host.saved_ids),
            saved_blocks=self._kv.host.num_saved_blocks,
            loaded_blocks=self._kv.host.num_loaded_blocks,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError unless requests, lists and blocks agree with each other."""
        self._roster.check_invariants()
        rows = Counter(row.request for output in self._under_way.values() for row in output.rows)
        for request in self._roster.requests.values():
            assert request.num_rows_under_way == rows[request], f"{request.request_id}: rows miscounted"
            assert request.num_pending_tokens <= rows[request], f"{request.request_id} awaits too much"


def _note_prompt_logprobs(output: SchedulerOutput, result: StepResult) -> None:
    """Append to requests what they do not have from before a preemption."""
    for row in output.rows:
        known = row.request.prompt_logprobs
        known += result.prompt_logprobs.get(row.request.request_id, [])[len(known) - row.start :]
