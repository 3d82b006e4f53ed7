"""The contract between scheduler and runner: what one step runs, and what came out.

The loop reads `output = scheduler.schedule()`, `pending = runner.launch(output)`,
`scheduler.commit(output, pending.wait())`. A backend that runs ahead returns from
`launch` before the device is done; the CPU has the result at once.

With EngineConfig.ahead the loop launches step N + 1 before it waits for step N, and
never more than that. Steps run on the device in the order of their launch. A runner
reads a Request only inside `launch`: afterwards the scheduler changes it.

What is made once a row and step is a NamedTuple: a third of a frozen dataclass's cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from engine.errors import SamplingError
from engine.request import Request

# The KV of fewer is copied in less time than it takes to wake who copies it.
MIN_TOKENS_TOLD_EARLY = 256


class ScheduledRow(NamedTuple):
    """One request's share of a step.

    Attributes:
        request: read-only for the runner.
        start: num_computed_tokens before the step; the row runs tokens[start : start + num_tokens].
        num_tokens: >= 1.
        sample: the row reaches the end of its tokens, so its last logits are sampled; the drawn
            token's position is start + num_tokens.
        pending: the row's one token is what the step before draws for this request. The host does
            not know it yet: len(request.token_ids) == start. The runner takes it on the device.
    """

    request: Request
    start: int
    num_tokens: int
    sample: bool
    pending: bool = False

    @property
    def is_told_early(self) -> bool:
        """Whether somebody waits for the end of this prompt, and has many blocks to fetch."""
        request = self.request
        is_end = self.sample and self.num_tokens >= MIN_TOKENS_TOLD_EARLY
        return is_end and request.hold_blocks and request.given is None


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy one block inside a cache group before the step runs (copy-on-write)."""

    group: int
    src: int
    dst: int


class SwapOut(NamedTuple):
    """Copy a block to a slot of host memory."""

    group: int
    block_id: int
    slot: int


class SwapIn(NamedTuple):
    """Copy a slot of host memory to a block."""

    group: int
    slot: int
    block_id: int


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """What one step runs: swap_outs, then swap_ins, then copies, then rows. Any of them may be empty.

    Attributes:
        step: number, growing.
        rows: rows with one token first (decode), then chunks; no request twice.
        copies: done before the rows run, one after the other.
        finished_request_ids: requests that ended since the last step; the runner drops its state of them.
        swap_outs: read what all steps before have written. Until this step is over nobody writes their
            blocks, so they may run beside the rows.
        swap_ins: must be done before copies and rows. Until this step is over nobody writes their slots.
    """

    step: int
    rows: tuple[ScheduledRow, ...]
    copies: tuple[BlockCopy, ...] = ()
    finished_request_ids: tuple[str, ...] = ()
    swap_outs: tuple[SwapOut, ...] = ()
    swap_ins: tuple[SwapIn, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to launch."""
        return not (self.rows or self.swap_outs or self.swap_ins)

    @property
    def num_tokens(self) -> int:
        """Tokens over all rows."""
        return sum(row.num_tokens for row in self.rows)

    @property
    def tells_layers(self) -> bool:
        """Whether somebody would read blocks while the step computes them; see PendingStep.layers."""
        return any(row.is_told_early for row in self.rows)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural-log probabilities at one position, before temperature and truncation."""

    sampled: float
    top_ids: tuple[int, ...] = ()
    top: tuple[float, ...] = ()


class SampledToken(NamedTuple):
    """What sampling one row gave."""

    token_id: int
    logprobs: Logprobs | None = None


Draw = SampledToken | SamplingError
"""What sampling one row gave, or why it could not; no row suffers for another."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave.

    Attributes:
        sampled: tokens by request id, or why there is none; rows with `sample` only.
        prompt_logprobs: by request id, of the tokens after those that its row ran, as far as they are the
            prompt's; rows whose request asks for them only.
    """

    sampled: dict[str, Draw]
    prompt_logprobs: dict[str, list[Logprobs]] = field(default_factory=dict)


class LayersWritten(NamedTuple):
    """A moment of a step: from then on the KV of its leading layers is in the blocks.

    Attributes:
        num_layers: in the order in which they lie in a block.
        wait: returns when it has come; for any thread, lets go of the GIL.
    """

    num_layers: int
    wait: Callable[[], object]


class PendingStep(Protocol):
    """A step under way on the device."""

    @property
    def layers(self) -> Sequence[LayersWritten]:
        """Moments in order, the last one for all layers; none unless the step `tells_layers`, and
        not even then where the device cannot say."""
        ...

    def is_over(self) -> bool:
        """Whether the device is done with it; any thread may ask."""
        ...

    def wait(self) -> StepResult:
        """Block until the step is done and return what it sampled. Called once.

        If it raises, nothing of the step runs any more.
        """
        ...


class Runner(Protocol):
    """Runs steps; lives on the engine thread."""

    def launch(self, output: SchedulerOutput) -> PendingStep:
        """Start one step. Modifies the scheduled slots of the KV, and the blocks and host slots copied to.

        If it raises, nothing of the step runs any more: its blocks are given to others next.
        """
        ...

    def prepare(self) -> bool:
        """Do 10 to 50 ms of work that a later step would have to wait for; called while no step runs.

        Returns:
            Whether there is more to do.
        """
        ...
