"""One request as the engine sees it.

The engine thread alone changes a Request. Its tokens are the prompt followed by
the output; `num_computed_tokens` of them have their KV in blocks. The scheduler
always runs tokens[num_computed : num_computed + n]; when that reaches the end of
the tokens, the row is sampled. Prefill, decode, recompute after a preemption and
speculation are all that one rule. While a step is under way, what it computes and
draws counts as done already; only which token it draws is not known yet.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.grammar.state import GrammarState
from engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from engine.step import Logprobs


class RequestStatus(enum.Enum):
    """Where a request is.

    WAITING -> RUNNING -> FINISHED; RUNNING -> WAITING on preemption;
    QUEUED (wants a reservation) -> RESERVED (blocks set aside) -> RUNNING on commit (KV has come) or
    compute (it is made here).
    """

    WAITING = "waiting"
    QUEUED = "queued"
    RESERVED = "reserved"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(enum.Enum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens of one request that one step ran.

    Attributes:
        start: position of the first.
        num_tokens: how many.
        begun_s, ended_s: of the step, time.monotonic().
    """

    start: int
    num_tokens: int
    begun_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class GivenBlocks:
    """Blocks of this pool that another worker has set aside for a request, to be computed in place.

    Attributes:
        block_ids: one tuple a cache group, enough for all tokens of the request.
        num_computed_tokens: leading tokens whose KV is there; whole blocks, and not all tokens.
        writable: whether the blocks may still be written; asked on the engine thread before each step
            that would, so it must be quick.
    """

    block_ids: tuple[tuple[int, ...], ...]
    num_computed_tokens: int
    writable: Callable[[], bool]


@dataclass(slots=True, eq=False)
class Request:
    """State of one request; two are equal only if they are the same object.

    Attributes:
        request_id: opaque, unique in this engine.
        token_ids: prompt and output. An array rather than a list where there are many requests: a list is
            walked through by the collector, token by token.
        num_prompt_tokens: leading tokens that are the prompt (the rest count for output penalties,
            max_tokens and min_tokens; a resumed request arrives with some output already).
        sampling: how tokens are drawn.
        priority: lower is more urgent.
        cache_salt: requests with different salts never share blocks.
        arrival: order of arrival in this engine, strictly growing.
        hold_blocks: keep the blocks after the request finished until it is cancelled (prefill role);
            needs max_new_tokens 1. It gets the blocks of all its tokens at admission and is never preempted.
        given: compute into these blocks instead of own ones; needs hold_blocks.
        max_new_tokens: stop after this many sampled here; 1 in the prefill role. None: sampling decides.
        grammar: keeps the answer inside a grammar; None: it is free.
        num_computed_tokens: KV present, or written by a step under way.
        num_pending_tokens: drawn by steps under way and not in token_ids yet.
        num_rows_under_way: steps under way that run it.
        num_writable_slots: leading slots that it may write up to, from num_computed_tokens on, as far as
            is known without asking.
        token_limit: with so many tokens the answer ends, whatever they are; known while it runs.
        num_cached_tokens: KV that the prefix cache gave at first admission.
        block_ids: block table, one list a cache group.
        num_preemptions: times that it lost its blocks.
        num_sampled_tokens: tokens drawn here.
        first_run_s: time.monotonic() of the first step that ran it.
        chunks: what steps ran of its prompt, in order.
        prompt_logprobs: of its prompt's tokens from the second on, as far as they are known, if asked for.
    """

    request_id: str
    token_ids: MutableSequence[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    arrival: int = 0
    hold_blocks: bool = False
    given: GivenBlocks | None = None
    max_new_tokens: int | None = None
    grammar: GrammarState | None = None
    status: RequestStatus = RequestStatus.WAITING
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    num_rows_under_way: int = 0
    num_writable_slots: int = 0
    token_limit: int = 0
    num_cached_tokens: int = 0
    block_ids: list[list[int]] = field(default_factory=list)
    num_preemptions: int = 0
    num_sampled_tokens: int = 0
    first_run_s: float | None = None
    chunks: list[Chunk] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens after the prompt."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def needs_host_token(self) -> bool:
        """Whether the host must know the last token before the next one can be drawn."""
        return self.grammar is not None

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose KV is missing, pending ones included; 1 for a request in decode."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens
