"""One request on a decode worker, from Reserve to its last token."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from baton.v1 import kv_pb2
from engine.events import ReservationGranted
from engine.kv.layout import CacheGroup
from kvtransfer.events import Committed
from services.common.errors import BatonError, ErrorReason
from services.common.ids import new_id


class Phase(enum.Enum):
    """QUEUED -> RESERVED -> RUNNING -> ENDED; every phase may go to ENDED at once.

    ENDED means that nothing more is done for the request; its blocks may still wait for a fence.
    """

    QUEUED = "queued"
    RESERVED = "reserved"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(eq=False)
class Reservation:
    """State of one request; lives on the event loop.

    Attributes:
        request_id: the gateway's.
        gateway_id: whose stream gets the tokens.
        transfer_id: what fills it.
        num_tokens: tokens whose KV is to come.
        reservation_id: opaque; also the engine's id of the request.
        epoch: the attempt that may fill it.
        phase: where it is.
        grammar_state: before the first token that COMMIT brings; None: the answer is free.
        granted: resolves when the engine has set the blocks aside.
    """

    request_id: str
    gateway_id: str
    transfer_id: str
    num_tokens: int
    reservation_id: str = field(default_factory=new_id)
    epoch: int = 1
    phase: Phase = Phase.QUEUED
    grammar_state: kv_pb2.GrammarState | None = None
    granted: asyncio.Future[ReservationGranted] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

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
