"""One try at a request: a reservation on a decode worker, a prefill into it, and the tokens.

open()   pick a decode worker -> Reserve
next()   pick a prefill worker, or the decode worker itself -> Prefill -> first token; then decode's
         tokens from its step stream
close()  whatever happened: both workers free what the request holds

If prefill fails before its first token, another one fills the same reservation under
the next epoch. Every other loss ends the attempt, and the session makes a new one
from the tokens that it has. Each has its own ids, so late events of an old one fall flat.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from baton.v1.decode_pb2 import ReserveRequest, TokenEvent
from baton.v1.kv_pb2 import KvTarget
from baton.v1.prefill_pb2 import FirstToken, HandedOver, PrefillRequest
from baton.v1.sampling_pb2 import FinishReason, SamplingParams
from services.common.errors import BatonError, ErrorReason
from services.common.logs import log
from services.gateway.prefix_index import PromptBlocks
from services.gateway.registry import WorkerKey
from services.gateway.request import Request
from services.gateway.selection import Hold, Reserved
from services.gateway.session.cluster import Cluster
from services.gateway.session.events import AttemptEvent, PrefillEvent, StreamBroken, Token, tokens_of
from services.gateway.session.link import WorkerLink
from services.gateway.session.mailbox import Mailbox
from services.gateway.session.recovery import (
    FULL_REASONS,
    AttemptFailedError,
    Recovery,
    deadline_error,
)
from services.gateway.session.trace import Metadata, RequestTrace

_STREAM_OPEN_S = 2.0
_SETTLE_S = 1.0
_CANCELLED = FinishReason.FINISH_REASON_CANCELLED

_logger = logging.getLogger(__name__)


class Attempt:
    """See the module.

    Args:
        token_ids: the prompt and the tokens that the client has.
        number: of the attempt, from 1.
        is_scored: the prompt's log-probabilities are known; they are not computed again.
        take_now: is offered what comes while `next` waits, once decode runs; false: `next` gets it.
    Attributes:
        queue_s: time in the decode worker's queue, seconds; None: not reserved yet.
        first: what prefill said of the first token, once it came.
        handed_over: statistics of the hand-off, once decode acknowledged it.
        decode_worker, prefill_worker: their ids; empty: none yet, or none needed.
    """

    def __init__(
        self,
        cluster: Cluster,
        recovery: Recovery,
        request: Request,
        trace: RequestTrace,
        token_ids: Sequence[int],
        number: int,
        is_scored: bool,
        take_now: Callable[[AttemptEvent], bool] | None = None,
    ) -> None:
        self._cluster = cluster
        self._recovery = recovery
        self._trace = trace
        self._request = request
        self._token_ids = token_ids
        self._prompt = PromptBlocks(token_ids, request.cache_salt)
        self._sampling = request.sampling
        if is_scored and request.sampling.HasField("prompt_logprobs"):
            # Else the prompt would be computed past the prefix cache.
            self._sampling = SamplingParams()
            self._sampling.CopyFrom(request.sampling)
            self._sampling.ClearField("prompt_logprobs")
        self._max_new = request.sampling.max_tokens - (len(token_ids) - len(request.token_ids))
        self._id = f"{request.key}-{number}"
        self._mailbox: Mailbox[AttemptEvent] = Mailbox()
        self._take_now = take_now
        self._holds: list[Hold] = []
        self._decode: WorkerLink | None = None
        self._prefill: WorkerLink | None = None
        self._prefill_task: asyncio.Task[None] | None = None
        self._prefill_failure: BatonError | None = None
        self._failure: BatonError | None = None
        self._target: KvTarget | None = None
        self._epoch = 0
        self._is_on_decode = False
        self._has_begun = False
        self._full_prefill: set[WorkerKey] = set()
        self._tokens: list[Token] = []
        self._early: list[Token] = []
        self.queue_s: float | None = None
        self.first: FirstToken | None = None
        self.handed_over: HandedOver | None = None

    @property
    def decode_worker(self) -> str:
        """Id of the worker that holds the reservation."""
        return self._decode.worker.info.worker_id if self._decode else ""

    @property
    def prefill_worker(self) -> str:
        """Id of the worker that computes, or computed, the prompt."""
        return self._prefill.worker.info.worker_id if self._prefill else ""

    @property
    def _reserved(self) -> Reserved:
        if self._decode is None or self._target is None:
            return Reserved()
        return Reserved(self._decode.worker, self._target.num_cached_tokens)

    async def open(self) -> None:
        """Reserve room on a decode worker, unless the first token is all that is wanted; start prefill.

        Raises:
            AttemptFailedError, BatonError: nothing was reserved that `close` does not free.
        """
        self._mailbox.set_deadline(self._recovery.remaining_s())
        if self._max_new > 1:
            full: set[WorkerKey] = set()
            while not await self._reserve(full):
                pass
        await self._start_prefill()

    async def next(self) -> list[Token]:
        """Wait for the next tokens; none, if `wake` was called.

        Raises:
            AttemptFailedError: no more will come, but a new attempt may go on.
            BatonError: the request has failed, or its deadline passed.
        """
        while not self._tokens:
            if self._failure is not None:
                raise AttemptFailedError(self._failure)
            if self._prefill_failure is not None:
                await self._recover_prefill(self._prefill_failure)
            try:
                is_running = self._has_begun and self.first is not None
                events = await self._mailbox.take(self._take_now if is_running else None)
            except TimeoutError:
                raise deadline_error() from None
            for event in events:
                self._take(event)
            if not events:
                break
        tokens, self._tokens = self._tokens, []
        return tokens

    def wake(self) -> None:
        """Let `next` return."""
        self._mailbox.wake()

    async def settle(self) -> None:
        """After the last token: let prefill say how the hand-off went, if it is still about to."""
        if self._target is None or self._is_on_decode or self._prefill_task is None:
            return
        await asyncio.wait([self._prefill_task], timeout=_SETTLE_S)
        for event in self._mailbox.take_now():
            self._take(event)

    def close(self) -> None:
        """Free everything on both sides, without waiting. Idempotent."""
        self._mailbox.close()
        if self._prefill_task is not None:
            self._prefill_task.cancel()
        for hold in self._holds:
            hold.release()
        self._holds.clear()
        if self._decode is not None and self._decode.steps is not None:
            self._decode.steps.unsubscribe(self._id)
            if self._is_on_decode:
                self._is_on_decode = False
                self._cluster.spawn(self._decode.cancel_decode(self._id))

    def on_tokens(self, event: TokenEvent) -> None:
        """Take one step's share (StepSink)."""
        self._mailbox.put(event)

    def on_broken(self, error: BatonError) -> None:
        """Take note that the step stream broke (StepSink)."""
        self._mailbox.put(StreamBroken(error))

    async def _reserve(self, full: set[WorkerKey]) -> bool:
        """Reserve on one worker; False: it is full and another one may not be."""
        pick = self._cluster.pick_decode
        avoid = self._recovery.avoid
        link, hold = await self._recovery.pick(
            "decode", lambda: pick(self._prompt, self._max_new, avoid, full)
        )
        self._decode = link
        self._holds.append(hold)
        assert link.steps is not None
        try:
            await link.steps.opened(min(_STREAM_OPEN_S, self._recovery.remaining_s()))
            link.steps.subscribe(self._id, self)
            self._is_on_decode = True
            await self._call_reserve(link)
            return True
        except BatonError as error:
            if error.reason in FULL_REASONS:
                full.add(link.worker.key)
                if self._cluster.has_decode(full):
                    self._leave_decode()
                    return False
                raise
            self._recovery.blame(link.worker, error)
            raise AttemptFailedError(error) from error

    async def _call_reserve(self, link: WorkerLink) -> None:
        metadata = self._trace.reserve(self.decode_worker)
        response = await link.reserve(
            ReserveRequest(
                request_id=self._id,
                gateway_id=self._cluster.gateway_id,
                token_ids=self._token_ids,
                num_prompt_tokens=len(self._request.token_ids),
                sampling=self._sampling,
                priority=self._request.priority,
                cache_salt=self._request.cache_salt,
                reservation_id=self._target.reservation_id if self._target else "",
                transfer_id=self._id,
            ),
            self._recovery.remaining_s(),
            metadata,
        )
        if response.target.peer.incarnation != link.worker.info.incarnation:
            raise BatonError(ErrorReason.WORKER_LOST, f"worker {self.decode_worker!r} was reborn")
        self._target = response.target
        self._trace.reserved()
        if self.queue_s is None:
            self.queue_s = response.queue_s

    def _leave_decode(self) -> None:
        """Let go of a worker that refused; nothing is held there."""
        assert self._decode is not None
        assert self._decode.steps is not None
        self._decode.steps.unsubscribe(self._id)
        self._is_on_decode = False
        self._holds.pop().release()

    async def _start_prefill(self) -> None:
        pick = self._cluster.pick_prefill
        avoid = self._recovery.avoid
        link, hold = await self._recovery.pick(
            "prefill", lambda: pick(self._prompt, self._reserved, avoid, self._full_prefill)
        )
        self._prefill = link
        self._holds.append(hold)
        self._epoch += 1
        metadata = self._trace.prefill(self.prefill_worker)
        request = PrefillRequest(
            request_id=f"{self._id}.{self._epoch}",
            token_ids=self._token_ids,
            num_prompt_tokens=len(self._request.token_ids),
            sampling=self._sampling,
            priority=self._request.priority,
            cache_salt=self._request.cache_salt,
            target=self._target,
        )
        self._prefill_task = asyncio.create_task(
            self._read_prefill(link, request, metadata, hold, self._epoch)
        )

    async def _read_prefill(
        self, link: WorkerLink, request: PrefillRequest, metadata: Metadata, hold: Hold, epoch: int
    ) -> None:
        error: BatonError | None = None
        try:
            async with contextlib.aclosing(
                link.prefill(request, self._recovery.remaining_s(), metadata)
            ) as responses:
                async for response in responses:
                    hold.release()
                    self._mailbox.put(PrefillEvent(epoch, response))
        except BatonError as failure:
            error = failure
        finally:
            hold.release()
        self._mailbox.put(PrefillEvent(epoch, error=error))

    def _take(self, event: AttemptEvent) -> None:
        match event:
            case TokenEvent():
                self._take_step(event)
            case StreamBroken():
                assert self._decode is not None
                self._recovery.avoid.add(self._decode.worker.key)
                self._failure = event.error
            case PrefillEvent() if event.epoch == self._epoch:
                self._take_prefill(event)

    def _take_step(self, event: TokenEvent) -> None:
        if event.HasField("failure"):
            self._is_on_decode = False
            reason = ErrorReason.__members__.get(event.failure.reason, ErrorReason.INTERNAL)
            self._failure = BatonError(reason, event.failure.message)
            return
        if event.finish_reason:
            self._is_on_decode = False
        is_dropped = event.finish_reason == _CANCELLED
        if is_dropped or (event.finish_reason and not event.token_ids):
            self._failure = BatonError(ErrorReason.CANCELLED, "the decode worker dropped the request")
            return
        tokens = tokens_of(event)
        self._has_begun = self._has_begun or bool(tokens)
        # Two connections have no common order: decode's tokens wait for prefill's first.
        (self._tokens if self.first is not None else self._early).extend(tokens)

    def _take_prefill(self, event: PrefillEvent) -> None:
        response = event.response
        if response is not None and response.HasField("first_token"):
            first = self.first = response.first_token
            assert self._prefill is not None
            self._prefill.worker.pace.note(len(self._token_ids) - first.cached_tokens, first.compute_s)
            self._trace.first_token(first)
            if self._target is not None and not first.finish_reason:
                self._trace.hand_off(self.prefill_worker, self.decode_worker)
            logprobs = first.logprobs if first.HasField("logprobs") else None
            self._tokens.append(Token(first.token_id, logprobs, first.finish_reason))
            self._tokens.extend(self._early)
            self._early.clear()
        elif response is not None:
            self.handed_over = response.handed_over
            self._trace.handed_over(response.handed_over)
        elif self.first is None:
            self._prefill_failure = event.error or BatonError(
                ErrorReason.INTERNAL, f"prefill worker {self.prefill_worker!r} ended without a token"
            )
        elif event.error is not None and self._target is not None:
            self._fail_handoff(event.error)

    def _fail_handoff(self, error: BatonError) -> None:
        """Judge a prefill that failed after its first token: harmless if decode has begun.

        Else decode may not have the blocks and cannot be asked, so the attempt is over.
        """
        assert self._prefill is not None
        log(
            _logger,
            logging.WARNING,
            "hand-off not acknowledged",
            request_id=self._request.request_id,
            worker=self.prefill_worker,
            reason=error.reason.name,
            error=error.message,
            decode_has_begun=self._has_begun,
        )
        if not self._has_begun:
            self._recovery.blame(self._prefill.worker, error)
            self._failure = error

    async def _recover_prefill(self, error: BatonError) -> None:
        """Let another worker fill the same reservation, under the next epoch."""
        self._prefill_failure = None
        self._trace.lost(error.reason.name)
        link = self._prefill
        assert link is not None
        if error.reason in FULL_REASONS:
            self._full_prefill.add(link.worker.key)
            if not self._cluster.has_prefill(self._prompt, self._reserved, self._full_prefill):
                raise error
        elif error.reason in (ErrorReason.LEASE_EXPIRED, ErrorReason.RESERVATION_GONE):
            raise AttemptFailedError(error)
        else:
            self._recovery.blame(link.worker, error)
            self._recovery.count(error)
        if self._target is not None:
            await self._reopen()
        await self._start_prefill()

    async def _reopen(self) -> None:
        """Open the reservation again under the next epoch."""
        assert self._decode is not None
        try:
            await self._call_reserve(self._decode)
        except BatonError as error:
            if error.reason is not ErrorReason.RESERVATION_GONE:
                self._recovery.blame(self._decode.worker, error)
            raise AttemptFailedError(error) from error
