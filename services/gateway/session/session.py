"""The life of one request, from admission to the last delta.

    session = Session(...)                # holds an admission ticket
    try:
        async for event in session.events():    # Started, Delta..., Finished; or a BatonError
            ...
    finally:
        session.close()                   # frees both workers, at whatever moment

The session keeps the prompt and every token that the client has. When an attempt
fails, the next one prefills both and goes on; the seed is fixed, so it draws what the
lost one would have drawn. Tokens that never reached the client are drawn again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Protocol

from baton.v1.decode_pb2 import TokenEvent
from baton.v1.inference_pb2 import Delta, Finished, Handoff, Started, Timing, Usage
from baton.v1.sampling_pb2 import TokenLogprobs
from services.common.errors import BatonError
from services.common.logs import log
from services.gateway.metrics import GatewayMetrics
from services.gateway.model import ServedModel
from services.gateway.request import Request
from services.gateway.session.answer import Answer
from services.gateway.session.attempt import Attempt
from services.gateway.session.cluster import Cluster
from services.gateway.session.events import AttemptEvent, Token
from services.gateway.session.recovery import AttemptFailedError, Recovery
from services.gateway.session.trace import RequestTrace
from services.gateway.ticket import Ticket

Event = Started | Delta | Finished

_logger = logging.getLogger(__name__)


class Outlet(Protocol):
    """Where tokens go without anybody being woken."""

    @property
    def is_free(self) -> bool:
        """Whether the next one would go out at once."""

    def put(self, text: str, token_id: int) -> None:
        """Send a token and the text that it adds, which may be empty."""


class Session:
    """See the module."""

    def __init__(
        self,
        request: Request,
        model: ServedModel,
        ticket: Ticket,
        cluster: Cluster,
        recovery: Recovery,
        metrics: GatewayMetrics,
        trace: RequestTrace,
    ) -> None:
        self.request = request
        self._model = model
        self._ticket = ticket
        self._cluster = cluster
        self._recovery = recovery
        self._metrics = metrics
        self._trace = trace
        self._reason = ""
        answer = self._answer = Answer(request, model.tokenizer)
        trace.count_by(lambda: len(answer.token_ids))  # not of self: the trace belongs to it
        self._admitted = time.monotonic()
        self._attempt: Attempt | None = None
        self._cached_tokens: int | None = None
        self._queue_s: float | None = None
        self._first_at: float | None = None
        self._last_at = 0.0
        self._outcome = "cancelled"
        self._is_closed = False
        self._mishap: Exception | None = None
        self._leader: Session | None = None
        self._prompt_logprobs: Sequence[TokenLogprobs] = ()
        self._prompt_shared = asyncio.Event()

    def follow(self, leader: Session) -> None:
        """Begin when the KV of another session's prompt, which is the same, is in both workers' caches.

        Else each would find the caches empty, and compute and move the prompt again. The prompt's
        log-probabilities, where they are wanted, are the other session's too.
        """
        self._leader = leader

    async def events(self, outlet: Outlet | None = None) -> AsyncGenerator[Event, None]:
        """Run the request.

        Args:
            outlet: gets most tokens, those that are nothing but one token, while the caller waits here.
        Raises:
            BatonError: it failed; the deltas so far stand.
        """
        request, answer = self.request, self._answer
        take_now = None
        if outlet is not None and not request.sampling.HasField("logprobs"):
            take_now = partial(self._pass_on, outlet)
        self._metrics.prompt_tokens.inc(len(request.token_ids))
        self._metrics.text.observe(request.text_s)
        yield Started(
            request_id=request.request_id, prompt_tokens=len(request.token_ids), model=self._model.name
        )
        number = 0
        try:
            if self._leader is not None:
                await self._leader._prompt_shared.wait()
                self._prompt_logprobs = self._leader._prompt_logprobs
            await self._ticket.start()
            self._trace.admitted()
            while not answer.finish_reason:
                number += 1
                attempt = self._attempt = Attempt(
                    self._cluster,
                    self._recovery,
                    request,
                    self._trace,
                    request.token_ids + tuple(answer.token_ids),
                    number,
                    bool(answer.token_ids or self._prompt_logprobs),
                    take_now,
                )
                try:
                    await attempt.open()
                    while not answer.finish_reason:
                        tokens = await self._next_tokens(attempt)
                        if tokens:
                            yield self._delta(tokens, attempt)
                except AttemptFailedError as failed:
                    attempt.close()
                    self._trace.lost(failed.cause.reason.name)
                    self._log_retry(failed.cause)
                    self._recovery.count(failed.cause)
            await attempt.settle()
        except BatonError as error:
            self._outcome, self._reason = "error", error.reason.name
            raise
        finally:
            self._prompt_shared.set()
        self._outcome = "ok"
        yield self._finished(attempt)

    def close(self) -> None:
        """Free everything that the request holds anywhere, without waiting. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._attempt is not None:
            self._attempt.close()
        self._ticket.release(len(self._answer.token_ids), is_whole=self._outcome == "ok")
        self._trace.ended(self._outcome, self._reason)
        self._record()

    async def _next_tokens(self, attempt: Attempt) -> list[Token]:
        if attempt.queue_s is not None:
            self._reserved()
        tokens = await attempt.next()
        if self._mishap is not None:
            raise self._mishap
        self._reserved()
        self._recovery.progress()
        return tokens

    def _pass_on(self, outlet: Outlet, event: AttemptEvent) -> bool:
        """Give a step's token to the outlet, in one go; false: `events` must see the event."""
        if not isinstance(event, TokenEvent) or not outlet.is_free:
            return False
        token_ids = event.token_ids
        if len(token_ids) != 1 or event.finish_reason:  # a failure has no tokens
            return False
        self._arrived(1)
        try:
            outlet.put(self._answer.push_token(token_ids[0]), token_ids[0])
        except Exception as error:  # fails this request alone: others' tokens are in the same message
            self._mishap = error
        if self._answer.finish_reason or self._mishap is not None:
            assert self._attempt is not None
            self._attempt.wake()
        return True

    def _delta(self, tokens: list[Token], attempt: Attempt) -> Delta:
        if self._first_at is not None:
            self._prompt_shared.set()  # decode has the prompt
        self._arrived(len(tokens))
        foretold: Sequence[TokenLogprobs] = ()
        if self._cached_tokens is None and attempt.first is not None:
            foretold = self._prompt_logprobs = self._prompt_logprobs or attempt.first.prompt_logprobs
            self._cached_tokens = min(attempt.first.cached_tokens, len(self.request.token_ids))
            self._metrics.cached_tokens.inc(self._cached_tokens)
        delta = self._answer.push(tokens)
        delta.prompt_logprobs.extend(foretold)
        return delta

    def _arrived(self, num_tokens: int) -> None:
        """Time tokens that came in one message."""
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            self._metrics.ttft.observe(now - self.request.received)
        else:
            self._metrics.itl.observe(now - self._last_at)
        self._last_at = now
        self._ticket.tokens(num_tokens, now)

    def _reserved(self) -> None:
        """Leave the queue, at the first reservation (or the first token, if none was needed)."""
        if self._queue_s is None:
            self._queue_s = time.monotonic() - self._admitted
            self._metrics.queue.observe(self._queue_s)
            self._ticket.run()

    def _finished(self, attempt: Attempt) -> Finished:
        received = self.request.received
        finished = Finished(
            reason=self._answer.finish_reason,
            matched_stop=self._answer.matched_stop,
            usage=Usage(
                prompt_tokens=len(self.request.token_ids),
                cached_tokens=self._cached_tokens or 0,
                completion_tokens=len(self._answer.token_ids),
            ),
            timing=Timing(
                queue_s=self._queue_s or 0.0,
                ttft_s=(self._first_at or received) - received,
                total_s=time.monotonic() - received,
            ),
        )
        if attempt.decode_worker:
            finished.handoff.CopyFrom(self._handoff(attempt))
        return finished

    def _handoff(self, attempt: Attempt) -> Handoff:
        handoff = Handoff(
            prefill_worker=attempt.prefill_worker,
            decode_worker=attempt.decode_worker,
            retries=self._recovery.retries,
        )
        stats = attempt.handed_over
        if stats is not None:
            handoff.transport = stats.transport
            handoff.blocks = stats.blocks
            handoff.bytes = stats.bytes
            handoff.skipped_blocks = stats.skipped_blocks
            handoff.exposed_s = stats.exposed_s
        return handoff

    def _log_retry(self, cause: BatonError) -> None:
        log(
            _logger,
            logging.WARNING,
            "attempt failed",
            request_id=self.request.request_id,
            reason=cause.reason.name,
            error=cause.message,
            emitted_tokens=len(self._answer.token_ids),
        )

    def _record(self) -> None:
        """Count the request and log how it went."""
        total_s = time.monotonic() - self.request.received
        num_tokens = len(self._answer.token_ids)
        metrics = self._metrics
        metrics.requests.labels(self._outcome).inc()
        metrics.generation_tokens.inc(num_tokens)
        metrics.retries.inc(self._recovery.retries)
        if self._outcome == "ok":
            metrics.e2e.observe(total_s)
            if num_tokens > 1 and self._first_at is not None:
                metrics.tpot.observe((self._last_at - self._first_at) / (num_tokens - 1))
        log(
            _logger,
            logging.INFO,
            "request ended",
            request_id=self.request.request_id,
            worker_request_id=self.request.key,
            api_key=self.request.caller.key_id or None,
            trace_id=self._trace.trace_id,
            outcome=self._outcome,
            prompt_tokens=len(self.request.token_ids),
            completion_tokens=num_tokens,
            retries=self._recovery.retries,
            ttft_s=None if self._first_at is None else round(self._first_at - self.request.received, 6),
            total_s=round(total_s, 6),
            prefill_worker=self._attempt.prefill_worker if self._attempt else None,
            decode_worker=self._attempt.decode_worker if self._attempt else None,
        )
