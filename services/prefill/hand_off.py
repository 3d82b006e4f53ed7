"""The blocks of one prompt on their way, at the engine's own pace.

What the engine says goes to the transfer on the engine's thread: from there the event loop would be one
more thread to wake, and a busy one, between the last chunk and COMMIT.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from baton.v1 import kv_pb2
from engine.events import BlocksFilled, BlocksFilling, Event, RequestCancelled, RequestFailed, TokenSampled
from kvtransfer.outbound import OutboundTransfer
from kvtransfer.transfer_stats import TransferStats
from services.common.tracing import Span

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Begun:
    """Blocks from `first_index` on, to the end of the prompt, of which the first `num_bytes` were pushed."""

    first_index: int
    num_bytes: int
    block_bytes: int


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
        self._has_pushed = False
        self._begun: dict[int, _Begun] = {}
        self._num_filled = [0] * len(skip)
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

    def push_part(self, event: BlocksFilling, num_bytes: int) -> None:
        """Push what is final of blocks that a step under way fills: the first `num_bytes` of each."""
        group = event.group
        first_index = max(event.first_index, self._skip[group])
        block_ids = event.block_ids[first_index - event.first_index :]
        if not block_ids:
            return
        try:
            with self._lock:
                # When BlocksFilled was first, all of them have been pushed.
                if not self._stopped and self._num_filled[group] <= first_index:
                    begun = _Begun(first_index, 0, event.parts[-1].num_bytes)
                    self._push_up_to(group, self._begun.setdefault(group, begun), block_ids, num_bytes)
        except Exception as error:
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
            return not self._has_pushed or self._in_place

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
        group = event.group
        first_index = max(event.first_index, self._skip[group])
        block_ids = event.block_ids[first_index - event.first_index :]
        if not block_ids:
            return
        with self._lock:
            if self._stopped:
                return
            self._num_filled[group] = first_index + len(block_ids)
            begun = self._begun.get(group)
            if begun is not None:
                num_whole = max(0, begun.first_index - first_index)
                block_ids, rest = block_ids[:num_whole], block_ids[num_whole:]
                if rest:
                    self._push_up_to(group, begun, rest, begun.block_bytes)
            if block_ids:
                self._note_push(len(block_ids))
                self.transfer.push(group, first_index, block_ids)

    def _push_up_to(self, group: int, begun: _Begun, block_ids: tuple[int, ...], num_bytes: int) -> None:
        if begun.num_bytes < num_bytes:
            part = range(begun.num_bytes, num_bytes)
            begun.num_bytes = num_bytes
            self._note_push(len(block_ids) if num_bytes == begun.block_bytes else 0)
            self.transfer.push(group, begun.first_index, block_ids, part=part)

    def _note_push(self, num_complete: int) -> None:
        self._has_pushed = True
        self._num_pushed += num_complete
        self._begin_span()

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
