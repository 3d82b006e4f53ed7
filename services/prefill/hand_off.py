"""The blocks of one prompt on their way, at the engine's own pace.

What the engine says goes to the transfer on the engine's thread: from there the event loop would be one
more thread to wake, and a busy one, between the last chunk and COMMIT.
"""

from __future__ import annotations

import logging
import threading
import time

from baton.v1 import kv_pb2
from engine.events import BlocksFilled, Event, RequestCancelled, RequestFailed, TokenSampled
from kvtransfer.outbound import OutboundTransfer
from kvtransfer.transfer_stats import TransferStats
from services.common.tracing import Span

_logger = logging.getLogger(__name__)


class HandOff:
    """Pushes blocks and COMMIT; `on_event` on the engine's thread, the rest on any.

    Args:
        transfer: under way.
        skip: leading blocks that the receiver has, by cache group; they are not sent.
        num_tokens: of the prompt.
        grammar_state: before the first token; None: the answer is free.
        span: of the RPC.
        in_place: the prompt is computed in the receiver's blocks.
    Attributes:
        transfer: see above.
        before_commit_s: from the end of compute until COMMIT was on its way, once it is.
    """

    def __init__(
        self,
        transfer: OutboundTransfer,
        skip: list[int],
        num_tokens: int,
        grammar_state: kv_pb2.GrammarState | None,
        span: Span,
        *,
        in_place: bool,
    ) -> None:
        self.transfer = transfer
        self.before_commit_s = 0.0
        self._skip = skip
        self._num_tokens = num_tokens
        self._grammar_state = grammar_state
        self._parent = span
        self._span: Span | None = None
        # Guards what follows: a run may be ended while the engine speaks.
        self._lock = threading.Lock()
        self._in_place = in_place
        self._num_pushed = 0
        self._stopped = False

    def on_event(self, event: Event, at: float) -> None:
        """Follow one event of the engine.

        Args:
            at: time.monotonic() at that moment.
        """
        try:
            match event:
                case BlocksFilled():
                    self._push(event)
                case TokenSampled():
                    self.settle()
                    self._commit(event, at)
                case RequestFailed() | RequestCancelled():
                    self.settle()
                case _:
                    pass
        except Exception as error:
            # The engine is not to end because of a hand-off.
            _logger.exception("a hand-off failed")
            self.fail("INTERNAL", repr(error))

    def settle(self) -> None:
        """Say that nothing is computed in the receiver's blocks (any more). Idempotent."""
        with self._lock:
            was, self._in_place = self._in_place, False
        if was:
            self.transfer.settle()

    def stop(self) -> bool:
        """Push and commit nothing from now on.

        Returns:
            Whether the prompt may be cancelled at once: nobody reads its blocks.
        """
        with self._lock:
            self._stopped = True
            return self._num_pushed == 0 or self._in_place

    def fail(self, reason: str, message: str) -> None:
        """End the transfer, unless it is over."""
        self.stop()
        if not self.transfer.done.done():
            self.transfer.fail(reason, message)

    def end_span(self, failure: BaseException | None, **facts: str | int | float) -> None:
        """Note that it is over."""
        if self._span is None:
            return
        if failure is None:
            self._span.set(**facts)
        self._span.end(error="" if failure is None else type(failure).__name__)

    def exposed_s(self, stats: TransferStats) -> float:
        """From the end of compute until decode could run, seconds; see `TransferStats`."""
        return self.before_commit_s + stats.exposed_s

    def _push(self, event: BlocksFilled) -> None:
        skip = max(0, self._skip[event.group] - event.first_index)
        block_ids = event.block_ids[skip:]
        if not block_ids:
            return
        with self._lock:
            if self._stopped:
                return
            self._num_pushed += len(block_ids)
            self._begin_span()
            self.transfer.push(event.group, event.first_index + skip, block_ids)

    def _commit(self, event: TokenSampled, at: float) -> None:
        if event.finish_reason is not None:
            return
        with self._lock:
            if self._stopped:
                return
            commit = kv_pb2.KvCommit(
                num_blocks=self._num_pushed,
                num_tokens=self._num_tokens,
                first_token=event.token.token_id,
                traceparent=self._begin_span().traceparent,
                transport=self.transfer.transport,
            )
            if self._grammar_state is not None:
                self._grammar_state.token_ids.append(event.token.token_id)
                commit.sampler_state = self._grammar_state.SerializeToString(deterministic=True)
            self.before_commit_s = time.monotonic() - at
            self.transfer.commit(commit.SerializeToString())

    def _begin_span(self) -> Span:
        """Return the span from the first push until the acknowledgement."""
        if self._span is None:
            self._span = self._parent.child("hand-off")
        return self._span
