"""What the engine tells its owner, once a step, on the engine thread.

A listener must return quickly: it hands the events to its own loop or queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from engine.errors import EngineError
from engine.request import FinishReason
from engine.step import SampledToken


@dataclass(frozen=True, slots=True)
class ReservationGranted:
    """Blocks were set aside for KV that another worker will send.

    Attributes:
        request_id: the request.
        block_ids: one tuple a cache group, in order of position; the leading ones may be cached.
        num_cached_tokens: leading tokens that need not be sent.
    """

    request_id: str
    block_ids: tuple[tuple[int, ...], ...]
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class BlocksFilled:
    """Blocks of a `hold_blocks` request hold their final bytes and may be read until it is cancelled.

    Attributes:
        request_id: the request.
        group: index of the cache group.
        first_index: index, in the request's block table, of the first of these blocks.
        block_ids: consecutive entries of the block table from there.
    """

    request_id: str
    group: int
    first_index: int
    block_ids: tuple[int, ...]


class FilledPart(NamedTuple):
    """A moment from which on a part of some blocks is final.

    Attributes:
        num_bytes: leading bytes of each block.
        wait: returns when it has come; for any thread, lets go of the GIL.
    """

    num_bytes: int
    wait: Callable[[], object]


@dataclass(frozen=True, slots=True)
class BlocksFilling:
    """A step under way fills the last blocks of a `hold_blocks` request, layer by layer.

    A hint for who has a long way to bring them: BlocksFilled follows for them as for all others.

    Attributes:
        request_id, group, first_index, block_ids: as in BlocksFilled.
        parts: in order; the last one is the whole block. Those of all requests of a step come at once.
    """

    request_id: str
    group: int
    first_index: int
    block_ids: tuple[int, ...]
    parts: tuple[FilledPart, ...]


class TokenSampled(NamedTuple):
    """A token was drawn.

    Attributes:
        request_id: the request.
        token: what was drawn.
        finish_reason: set if the answer ends with it. A request that stops only because of
            max_new_tokens ends here with None.
        num_cached_tokens: leading tokens that the prefix cache gave at first admission.
    """

    request_id: str
    token: SampledToken
    finish_reason: FinishReason | None
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The request ended with an error and holds nothing any more."""

    request_id: str
    error: EngineError


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The request was cancelled, or its held blocks were given back; it holds nothing any more."""

    request_id: str


Event = ReservationGranted | BlocksFilling | BlocksFilled | TokenSampled | RequestFailed | RequestCancelled


@dataclass(frozen=True, slots=True)
class StepEvents:
    """Everything that one step, or the commands before it, brought about.

    Attributes:
        step: number of the engine step.
        events: in order; for one request BlocksFilled comes before TokenSampled.
    """

    step: int
    events: tuple[Event, ...]
