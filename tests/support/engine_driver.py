"""Drives an EngineLoop step by step, on the caller's thread, checking everything after each step."""

from __future__ import annotations

from collections.abc import Sequence

from engine.config import EngineConfig
from engine.errors import EngineError
from engine.events import (
    BlocksFilled,
    RequestCancelled,
    RequestFailed,
    ReservationGranted,
    StepEvents,
    TokenSampled,
)
from engine.kv.host_tier import NO_HOST_SLOTS, HostSlots
from engine.loop import EngineLoop
from engine.request import FinishReason, Request, RequestStatus
from engine.scheduler.scheduler import Scheduler
from tests.support.engine_builders import CONTEXT_LENGTH, create_scheduler
from tests.support.verifying_runner import POISON, VerifyingRunner, fingerprints


class EngineDriver:
    """Collects events by request; freed blocks are poisoned after each step.

    Attributes:
        tokens: request id -> tokens drawn, by TokenSampled.
        reasons: request id -> how it finished.
        granted: request id -> its grant.
        filled: request id -> blocks reported, in order, of group 0.
        failed: request id -> error.
        cancelled: ids.
        ended: ids that the scheduler let go of.
    """

    def __init__(self, scheduler: Scheduler, runner: VerifyingRunner, ahead: bool = False) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.loop = EngineLoop(scheduler, runner, self._publish, ahead)
        self.tokens: dict[str, list[int]] = {}
        self.reasons: dict[str, FinishReason | None] = {}
        self.granted: dict[str, ReservationGranted] = {}
        self.filled: dict[str, list[int]] = {}
        self._filled_elsewhere: dict[str, list[int]] = {}
        self.failed: dict[str, EngineError] = {}
        self.cancelled: set[str] = set()
        self.ended: set[str] = set()
        self.requests: dict[str, Request] = {}

    def submit(self, *requests: Request) -> None:
        for request in requests:
            self.requests[request.request_id] = request
            self.scheduler.add(request)

    def reserve(self, *requests: Request) -> None:
        for request in requests:
            request.status = RequestStatus.QUEUED
        self.submit(*requests)

    def fill_and_commit(self, request: Request, first_token: int) -> None:
        """Do what a prefill worker and a transfer do; the KV came as soon as the blocks were granted."""
        self.scheduler.commit_reservation(request.request_id, first_token)

    def step(self) -> bool:
        busy = self.loop.step()
        self.scheduler.check_invariants()
        self.poison_free_blocks()
        return busy

    def run(self, max_steps: int = 100_000) -> None:
        """Step until there is nothing to run."""
        for _ in range(max_steps):
            if not self.step():
                return
        raise AssertionError(f"still busy after {max_steps} steps")

    def poison_free_blocks(self) -> None:
        kv = self.scheduler._kv
        for group, pool in enumerate(kv._pools):
            self.runner.poison(group, pool._blank)
        for group, pools in enumerate(zip(kv.host._swap, kv.host.caches, strict=True)):
            for pool in pools:
                self.runner.slots[group][pool._blank] = POISON

    def _publish(self, events: StepEvents, ended: Sequence[str], ends: bool) -> None:
        for event in events.events:
            request_id = event.request_id
            assert request_id not in self.ended, f"{request_id}: an event after its end"
            match event:
                case TokenSampled():
                    self.tokens.setdefault(request_id, []).append(event.token.token_id)
                    self.reasons[request_id] = event.finish_reason
                case ReservationGranted():
                    self._fill(event)
                case BlocksFilled():
                    self._check_filled(event)
                case RequestFailed():
                    assert not isinstance(event.error.__cause__, AssertionError), event.error
                    self.failed[request_id] = event.error
                case RequestCancelled():
                    self.cancelled.add(request_id)
        for request_id in ended:
            assert request_id not in self.ended, f"{request_id} ended twice"
            self.ended.add(request_id)

    def _fill(self, grant: ReservationGranted) -> None:
        """Another process writes into blocks at once, whatever the device does."""
        request = self.requests[grant.request_id]
        self.granted[grant.request_id] = grant
        for group, ids in enumerate(grant.block_ids):
            num_cached = grant.num_cached_tokens // self.runner.store[group].shape[1]
            self.runner.check_granted(group, ids[num_cached:])
            # Another process may read what is cached at once, too.
            known = fingerprints(request.token_ids[: grant.num_cached_tokens], request.cache_salt)
            assert self.runner.read(group, ids, grant.num_cached_tokens) == known
        self.runner.fill(request, grant.block_ids, grant.num_cached_tokens)

    def _check_filled(self, event: BlocksFilled) -> None:
        """Blocks come once, in order, and hold what they must when they are reported."""
        request = self.requests[event.request_id]
        filled = self.filled if event.group == 0 else self._filled_elsewhere
        reported = filled.setdefault(event.request_id, [])
        assert event.first_index == len(reported)
        assert event.request_id not in self.tokens, "BlocksFilled after TokenSampled"
        reported += event.block_ids
        size = self.runner.store[event.group].shape[1]
        num_tokens = min(len(reported) * size, request.num_prompt_tokens)
        known = fingerprints(request.token_ids[:num_tokens], request.cache_salt)
        assert self.runner.read(event.group, reported, num_tokens) == known


def create_driver(
    num_blocks: int = 64,
    block_sizes: Sequence[int] = (4,),
    config: EngineConfig | None = None,
    *,
    ahead: bool = False,
    host_slots: HostSlots = NO_HOST_SLOTS,
    context_length: int = CONTEXT_LENGTH,
) -> EngineDriver:
    """Drive a scheduler whose runner checks what it reads.

    Args:
        ahead: a step is launched before the one in front of it is known.
    """
    scheduler = create_scheduler(num_blocks, block_sizes, config, context_length, host_slots)
    runner = VerifyingRunner(num_blocks, block_sizes, late=ahead, num_host_slots=host_slots.total)
    return EngineDriver(scheduler, runner, ahead=ahead)
