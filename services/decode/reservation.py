"""One request on a decode worker, from Reserve to its last token."""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import threading
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from baton.v1 import kv_pb2
from engine.events import ReservationGranted, TokenSampled
from engine.kv.layout import CacheGroup
from engine.request import Request
from kvtransfer.events import Committed
from services.common.errors import BatonError, ErrorReason
from services.common.tracing import PassedOn, Span, begin
from services.worker.grammar_state import grammar_state


class Phase(enum.Enum):
    """QUEUED -> RESERVED -> RUNNING -> ENDED; every phase may go to ENDED at once.

    RESERVED -> COMPUTING -> RUNNING where the prompt is computed in place; the first token comes between.

    ENDED means that nothing more is done for the request; its blocks may still wait for a fence.
    """

    QUEUED = "queued"
    RESERVED = "reserved"
    COMPUTING = "computing"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first token of a prompt that was computed in place.

    Attributes:
        event: what the engine said.
        at: time.monotonic() when it was drawn.
    """

    event: TokenSampled
    at: float


@dataclass(frozen=True, slots=True, eq=False)
class InPlace:
    """The computation of a prompt in the blocks that were reserved for it.

    Attributes:
        prefill_id: request_id of the Prefill call that asked for it.
        fenced: done when no peer can write into the blocks any more; the engine begins then.
        first: resolves with the first token.
    """

    prefill_id: str
    fenced: concurrent.futures.Future[None]
    first: asyncio.Future[FirstToken] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(eq=False)
class Reservation:
    """State of one request; lives on the event loop, but for `phase` and `epoch`.

    Those may be moved on by the receiver's thread as well (COMMIT), so each step is taken at once or
    not at all: `advance`, `reopen`, `finish`.

    Attributes:
        request_id: the gateway's.
        gateway_id: whose stream gets the tokens.
        transfer_id: what fills it.
        request: the engine's, under the reservation's id.
        num_tokens: tokens whose KV is to come.
        epoch: the attempt that may fill it.
        phase: where it is.
        grammar_state: before the first token that COMMIT brings; None: the answer is free.
        granted: resolves when the engine has set the blocks aside.
        in_place: since it is COMPUTING.
        span: of the Reserve call.
    """

    request_id: str
    gateway_id: str
    transfer_id: str
    request: Request
    epoch: int = 1
    phase: Phase = Phase.QUEUED
    granted: asyncio.Future[ReservationGranted] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    in_place: InPlace | None = None
    span: Span = field(default_factory=PassedOn)
    _decoding: Span | None = None
    _moving: threading.Lock = field(default_factory=threading.Lock)
    num_tokens: int = field(init=False)
    grammar_state: kv_pb2.GrammarState | None = field(init=False)

    def __post_init__(self) -> None:
        """Note where the request is at the start: its own tokens grow."""
        self.num_tokens = self.request.num_tokens
        self.grammar_state = grammar_state(self.request)

    @property
    def reservation_id(self) -> str:
        """Opaque; also the engine's id of the request."""
        return self.request.request_id

    def advance(self, was: Phase, to: Phase, epoch: int) -> bool:
        """Go from a phase to the next, if it is in that one and `epoch` is the attempt; any thread."""
        with self._moving:
            if self.phase is not was or self.epoch != epoch:
                return False
            self.phase = to
            return True

    def reopen(self) -> bool:
        """Begin the next attempt, if it is RESERVED."""
        with self._moving:
            self.epoch += self.phase is Phase.RESERVED
            return self.phase is Phase.RESERVED

    def finish(self) -> Phase:
        """Go to ENDED; returns the phase before."""
        with self._moving:
            was, self.phase = self.phase, Phase.ENDED
            return was

    def begin_decode(self, traceparent: str = "") -> None:
        """Note that it joins the batch, on behalf of the hand-off that names itself, or of Reserve."""
        self._decoding = begin("decode", traceparent or self.span.traceparent, request_id=self.request_id)

    def end_decode(self, error: str = "") -> None:
        """Note that it left the batch. Idempotent."""
        if self._decoding is not None:
            self._decoding.set(tokens=self.request.num_sampled_tokens)
            self._decoding.end(error=error)
            self._decoding = None

    def check_commit(self, event: Committed, groups: tuple[CacheGroup, ...]) -> kv_pb2.KvCommit:
        """Return what COMMIT says, if it is about these tokens and all missing blocks came.

        Raises:
            BatonError: TRANSFER_FAILED; the message says what does not agree.
        """
        commit = kv_pb2.KvCommit()
        try:
            commit.ParseFromString(event.payload)
        except DecodeError as error:
            raise BatonError(ErrorReason.TRANSFER_FAILED, f"COMMIT is malformed: {error}") from error
        if commit.num_tokens != self.num_tokens:
            raise BatonError(
                ErrorReason.TRANSFER_FAILED,
                f"COMMIT is for {commit.num_tokens} tokens, {self.num_tokens} were reserved",
            )
        cached = self.granted.result().num_cached_tokens
        missing = sum(_blocks_to_come(group, self.num_tokens, cached) for group in groups)
        if not commit.num_blocks == event.num_blocks == missing:
            raise BatonError(
                ErrorReason.TRANSFER_FAILED,
                f"COMMIT of {commit.num_blocks} blocks: {event.num_blocks} came, {missing} were missing",
            )
        self._check_grammar(commit)
        return commit

    def _check_grammar(self, commit: kv_pb2.KvCommit) -> None:
        """Hold prefill's place in the grammar to the one that the engine will come to from its tokens."""
        came = kv_pb2.GrammarState.FromString(commit.sampler_state)
        expected = kv_pb2.GrammarState()
        if self.grammar_state is not None:
            expected.CopyFrom(self.grammar_state)
            expected.token_ids.append(commit.first_token)
        if came != expected:
            raise BatonError(
                ErrorReason.TRANSFER_FAILED,
                f"COMMIT: sampler_state is {len(came.token_ids)} tokens into grammar "
                f"{came.grammar_sha256.hex()[:12] or 'none'}, expected {len(expected.token_ids)} into "
                f"{expected.grammar_sha256.hex()[:12] or 'none'}",
            )


def _blocks_to_come(group: CacheGroup, num_tokens: int, cached_tokens: int) -> int:
    if cached_tokens >= num_tokens:
        return 0
    return group.num_blocks_for(num_tokens) - cached_tokens // group.block_size
