"""One prompt on its way: engine events in, blocks and COMMIT out. Lives on the event loop.

The blocks of a prompt belong to the engine until nobody reads them: with a transfer
under way, the engine is told to free them when the transfer is done (acknowledged,
failed or abandoned), never earlier. That holds for every way in which a run ends. A prompt that is
computed in the receiver's own blocks is the reverse: the transfer is over, for the receiver, only when
the engine has said its last word on the request (`settle`).
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from dataclasses import dataclass

from baton.v1 import kv_pb2
from engine.engine import Engine
from engine.events import BlocksFilled, Event, RequestCancelled, RequestFailed, TokenSampled
from engine.request import Request
from kvtransfer.outbound import OutboundTransfer, TransferStats
from services.common.errors import BatonError, ErrorReason
from services.common.tracing import PassedOn, Span
from services.worker.errors import translate
from services.worker.grammar_state import grammar_state
from services.worker.metrics import WorkerMetrics


@dataclass(frozen=True, slots=True)
class Sampled:
    """The first token.

    Attributes:
        event: what the engine said.
        at: time.monotonic() when it was drawn.
    """

    event: TokenSampled
    at: float


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The receiver acknowledged COMMIT.

    Attributes:
        stats: of the transfer.
        exposed_s: from the end of compute until the acknowledgement.
    """

    stats: TransferStats
    exposed_s: float


News = Sampled | HandedOver | BatonError


class PrefillRun:
    """State of one request.

    Args:
        skip_tokens: leading tokens that the receiver has; their blocks are not sent.
    Attributes:
        news: what the RPC waits for: Sampled, then HandedOver; or an error at any time.
        span: of the RPC.
    """

    def __init__(
        self,
        request_id: str,
        request: Request,
        engine: Engine,
        block_sizes: tuple[int, ...],
        skip_tokens: int,
        metrics: WorkerMetrics,
    ) -> None:
        self.request_id = request_id
        self.request = request
        self.news: asyncio.Queue[News] = asyncio.Queue()
        self._engine = engine
        self._num_tokens = request.num_tokens
        self._grammar_state = grammar_state(request)
        self._skip = [self._blocks_to_skip(size, skip_tokens) for size in block_sizes]
        self._metrics = metrics
        self._transfer: OutboundTransfer | None = None
        self._in_place = False
        self._num_pushed = 0
        self._ended = False
        self._before_commit_s = 0.0
        self._handoff: Span | None = None
        self.span: Span = PassedOn()

    @property
    def skipped_blocks(self) -> int:
        """Blocks that the receiver has already, over all groups."""
        return sum(self._skip)

    def attach(self, transfer: OutboundTransfer, *, in_place: bool) -> None:
        """Give the run its transfer; when that is done, the engine frees the blocks.

        Args:
            in_place: the prompt is computed in the receiver's blocks, and frees none.
        """
        self._transfer = transfer
        self._in_place = in_place
        loop = asyncio.get_running_loop()

        def on_done(done: Future[TransferStats]) -> None:
            self._engine.cancel(self.request.request_id)
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._on_transfer_done, done)

        transfer.done.add_done_callback(on_done)

    def on_event(self, event: Event, at: float) -> bool:
        """Take one engine event; returns True if the engine holds nothing for the request any more."""
        match event:
            case BlocksFilled():
                self._push(event)
            case TokenSampled():
                self.settle()
                self._on_token(event, at)
            case RequestFailed():
                self.settle()
                self.fail(translate(event.error) or BatonError(ErrorReason.INTERNAL, str(event.error)))
                return True
            case RequestCancelled():
                self.settle()
                return True
            case _:
                pass
        return False

    def settle(self) -> None:
        """Say that nothing is computed in the receiver's blocks (any more). Idempotent."""
        if self._transfer is not None and self._in_place:
            self._in_place = False
            self._transfer.settle()

    def fail(self, error: BatonError) -> None:
        """End the run early with an error for the RPC."""
        self.news.put_nowait(error)
        self.end(error.reason.name, error.message)

    def end(self, reason: str, message: str) -> None:
        """Stop compute and transfer; idempotent, and without effect on an acknowledged hand-off."""
        if self._ended:
            return
        self._ended = True
        if self._transfer is None or self._num_pushed == 0 or self._in_place:
            self._engine.cancel(self.request.request_id)
        if self._transfer is not None and not self._transfer.done.done():
            self._transfer.fail(reason, message)

    def _push(self, event: BlocksFilled) -> None:
        transfer = self._open_transfer()
        if transfer is None:
            return
        skip = max(0, self._skip[event.group] - event.first_index)
        block_ids = event.block_ids[skip:]
        if block_ids:
            self._num_pushed += len(block_ids)
            self._begin_handoff()
            transfer.push(event.group, event.first_index + skip, block_ids)

    def _on_token(self, event: TokenSampled, at: float) -> None:
        transfer = self._open_transfer()
        if transfer is not None and event.finish_reason is None:
            commit = kv_pb2.KvCommit(
                num_blocks=self._num_pushed,
                num_tokens=self._num_tokens,
                first_token=event.token.token_id,
                traceparent=self._begin_handoff().traceparent,
                transport=transfer.transport,
            )
            if self._grammar_state is not None:
                self._grammar_state.token_ids.append(event.token.token_id)
                commit.sampler_state = self._grammar_state.SerializeToString(deterministic=True)
            self._before_commit_s = time.monotonic() - at
            transfer.commit(commit.SerializeToString())
        self.news.put_nowait(Sampled(event, at))

    def _on_transfer_done(self, done: Future[TransferStats]) -> None:
        failure = done.exception()
        self._end_handoff(done)
        if failure is None:
            stats = done.result()
            exposed_s = self._before_commit_s + stats.exposed_s
            self._metrics.count_handoff(
                "sent", stats.transport, stats.blocks, stats.bytes, self.skipped_blocks
            )
            self._metrics.observe_exposed(stats.transport, exposed_s)
            self.news.put_nowait(HandedOver(stats, exposed_s))
            return
        self._metrics.count_failed_handoff(type(failure).__name__.removesuffix("Error").lower())
        known = translate(failure) if isinstance(failure, Exception) else None
        self.news.put_nowait(known or BatonError(ErrorReason.TRANSFER_FAILED, str(failure)))

    def _begin_handoff(self) -> Span:
        """Return the span from the first push until the acknowledgement."""
        if self._handoff is None:
            self._handoff = self.span.child("hand-off")
        return self._handoff

    def _end_handoff(self, done: Future[TransferStats]) -> None:
        if self._handoff is None:
            return
        failure = done.exception()
        if failure is not None:
            self._handoff.end(error=type(failure).__name__)
            return
        stats = done.result()
        self._handoff.set(
            transport=stats.transport,
            blocks=stats.blocks,
            bytes=stats.bytes,
            skipped_blocks=self.skipped_blocks,
            exposed_s=self._before_commit_s + stats.exposed_s,
        )
        self._handoff.end()

    def _open_transfer(self) -> OutboundTransfer | None:
        if self._ended or self._transfer is None or self._transfer.done.done():
            return None
        return self._transfer

    def _blocks_to_skip(self, block_size: int, skip_tokens: int) -> int:
        if skip_tokens >= self._num_tokens:
            return -(-self._num_tokens // block_size)
        return skip_tokens // block_size
