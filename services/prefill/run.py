"""One prompt, from its RPC's side: what the engine and the transfer come to. Lives on the event loop.

The blocks of a prompt belong to the engine until nobody reads them: with a transfer
under way, the engine is told to free them when the transfer is done (acknowledged,
failed or abandoned), never earlier. That holds for every way in which a run ends. A prompt that is
computed in the receiver's own blocks is the reverse: the transfer is over, for the receiver, only when
the engine has said its last word on the request (`HandOff.settle`).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass

from engine.engine import Engine
from engine.events import Event, RequestCancelled, RequestFailed, TokenSampled
from engine.request import Request
from kvtransfer.outbound import OutboundTransfer
from kvtransfer.transfer_stats import TransferStats
from services.common.errors import BatonError, ErrorReason
from services.common.tracing import PassedOn, Span
from services.prefill.hand_off import HandOff
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
        exposed_s: from the end of compute until decode could run.
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
        hand_off: since `attach`; None: there is nobody to hand over to.
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
        self.span: Span = PassedOn()
        self.hand_off: HandOff | None = None
        self._engine = engine
        self._num_tokens = request.num_tokens
        self._skip = [self._blocks_to_skip(size, skip_tokens) for size in block_sizes]
        self._metrics = metrics
        self._has_sampled = False
        self._handed_over: HandedOver | None = None
        self._ended = False

    @property
    def skipped_blocks(self) -> int:
        """Blocks that the receiver has already, over all groups."""
        return sum(self._skip)

    def attach(self, transfer: OutboundTransfer, *, in_place: bool) -> None:
        """Give the run its transfer; when that is done, the engine frees the blocks.

        Args:
            in_place: the prompt is computed in the receiver's blocks, and frees none.
        """
        state = grammar_state(self.request)
        self.hand_off = hand_off = HandOff(
            transfer, self._skip, self._num_tokens, state, self.span, in_place=in_place
        )
        loop = asyncio.get_running_loop()

        def on_done(done: Future[TransferStats]) -> None:
            self._engine.cancel(self.request.request_id)
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._on_transfer_done, hand_off, done)

        transfer.done.add_done_callback(on_done)

    def on_event(self, event: Event, at: float) -> bool:
        """Take one engine event; returns True if the engine holds nothing for the request any more."""
        match event:
            case TokenSampled():
                self.news.put_nowait(Sampled(event, at))
                self._has_sampled = True
                self._tell_handed_over()
            case RequestFailed():
                self.fail(translate(event.error) or BatonError(ErrorReason.INTERNAL, str(event.error)))
                return True
            case RequestCancelled():
                return True
            case _:
                pass
        return False

    def fail(self, error: BatonError) -> None:
        """End the run early with an error for the RPC."""
        self.news.put_nowait(error)
        self.end(error.reason.name, error.message)

    def end(self, reason: str, message: str) -> None:
        """Stop compute and transfer; idempotent, and without effect on an acknowledged hand-off."""
        if self._ended:
            return
        self._ended = True
        if self.hand_off is None or self.hand_off.stop():
            self._engine.cancel(self.request.request_id)
        if self.hand_off is not None:
            self.hand_off.fail(reason, message)

    def _on_transfer_done(self, hand_off: HandOff, done: Future[TransferStats]) -> None:
        failure = done.exception()
        if failure is None:
            stats = done.result()
            exposed_s = hand_off.exposed_s(stats)
            hand_off.end_span(
                None,
                transport=stats.transport,
                blocks=stats.blocks,
                bytes=stats.bytes,
                skipped_blocks=self.skipped_blocks,
                exposed_s=exposed_s,
            )
            self._metrics.count_handoff(
                "sent", stats.transport, stats.blocks, stats.bytes, self.skipped_blocks
            )
            self._metrics.observe_exposed(stats.transport, exposed_s)
            self._handed_over = HandedOver(stats, exposed_s)
            self._tell_handed_over()
            return
        hand_off.end_span(failure)
        self._metrics.count_failed_handoff(type(failure).__name__.removesuffix("Error").lower())
        known = translate(failure) if isinstance(failure, Exception) else None
        self.news.put_nowait(known or BatonError(ErrorReason.TRANSFER_FAILED, str(failure)))

    def _tell_handed_over(self) -> None:
        # The acknowledgement may be here before the loop has heard of the token.
        if self._has_sampled and self._handed_over is not None:
            self.news.put_nowait(self._handed_over)

    def _blocks_to_skip(self, block_size: int, skip_tokens: int) -> int:
        if skip_tokens >= self._num_tokens:
            return -(-self._num_tokens // block_size)
        return skip_tokens // block_size
