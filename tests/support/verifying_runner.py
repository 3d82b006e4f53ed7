"""A runner without a model that notices every wrong block.

The "KV" of a position is a fingerprint of its tokens up to there. A step reads the
fingerprints of all earlier positions through the block table and asserts each of
them, writes its own, and derives the next token from the last one it wrote. So a
block that was freed too early, shared wrongly, overwritten or not copied is seen.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.errors import SamplingError
from engine.request import Request, RequestStatus
from engine.sampler.sampler import Sampler
from engine.step import (
    Draw,
    LayersWritten,
    PendingStep,
    SampledToken,
    ScheduledRow,
    SchedulerOutput,
    StepResult,
    SwapOut,
)
from tests.support.engine_builders import EOS, VOCAB_SIZE

POISON = -1
_MASK = (1 << 62) - 1


def fingerprints(token_ids: Sequence[int], salt: str = "") -> list[int]:
    """One number a position, that depends on the salt and all tokens up to there."""
    value, result = zlib.crc32(salt.encode()), []
    for token_id in token_ids:
        value = (value * 6364136223846793005 + token_id * 1442695040888963407 + 1) & _MASK
        result.append(value)
    return result


def next_token(fingerprint: int) -> int:
    """Never an end-of-sequence token."""
    return (fingerprint >> 20) % 97


def expected_tokens(request: Request, count: int) -> list[int]:
    """What an undisturbed greedy run draws after the tokens that the request has now."""
    tokens = list(request.token_ids)
    value = fingerprints(tokens, request.cache_salt)[-1]
    for _ in range(count):
        tokens.append(next_token(value))
        value = (value * 6364136223846793005 + tokens[-1] * 1442695040888963407 + 1) & _MASK
    return tokens[len(tokens) - count :]


@dataclass(frozen=True)
class DoneStep:
    result: StepResult
    layers: Sequence[LayersWritten] = ()

    def is_over(self) -> bool:
        return True

    def wait(self) -> StepResult:
        return self.result


@dataclass(frozen=True)
class LaunchedRow:
    """What the device has of a row: the tables and tokens of the moment when it was launched."""

    request: Request
    start: int
    num_tokens: int
    sample: bool
    pending: bool
    token_ids: list[int]
    tables: list[list[int]]

    def written(self, block_sizes: Sequence[int]) -> set[tuple[int, int]]:
        """(group, block) that the row writes."""
        end = self.start + self.num_tokens
        return {
            (group, block_id)
            for group, (ids, size) in enumerate(zip(self.tables, block_sizes, strict=True))
            for block_id in ids[self.start // size : -(-end // size)]
        }

    def inherits(self, other: LaunchedRow) -> bool:
        """Whether a block may be the other's and this one's: the same request, or a child of it."""
        return self.request is other.request or (
            self.token_ids[: self.start] == other.token_ids[: self.start]
            and self.request.cache_salt == other.request.cache_salt
        )


@dataclass
class LateStep:
    """A step that the device has not run yet; it runs when it is waited for."""

    runner: VerifyingRunner
    output: SchedulerOutput
    rows: list[LaunchedRow]
    written: dict[tuple[int, int], LaunchedRow]
    layers: Sequence[LayersWritten] = ()
    waited: bool = False

    def is_over(self) -> bool:
        return self.waited

    def wait(self) -> StepResult:
        assert not self.waited, "waited for twice"
        self.waited = True
        return self.runner.finish(self)


class VerifyingRunner:
    """Checks each step against the contract and its own KV store.

    With `late` a step is run when it is waited for, with the tables that it was launched with:
    whatever was freed and given to somebody else before that is seen. At most two steps are
    under way, and a block that one of them writes has no new owner before it is over.

    Attributes:
        fail_steps: so many next launches raise.
        fail_waits: so many next waits raise; the requests of those steps must have ended afterwards.
        undrawable: requests, by id, for which no token can be drawn from now on.
        num_tokens_run: request id -> tokens run for it.
        outputs: every step that it got.
        num_wasted_rows: rows that ran although their request had ended.
        layers: what a step says of its layers, if it is asked.
    """

    def __init__(
        self,
        num_blocks: int,
        block_sizes: Sequence[int] = (4,),
        sampler: Sampler | None = None,
        late: bool = False,
        num_host_slots: int = 0,
    ) -> None:
        self.store = [np.full((num_blocks, size), POISON, dtype=np.int64) for size in block_sizes]
        self.slots = [np.full((num_host_slots, size), POISON, dtype=np.int64) for size in block_sizes]
        self.fail_steps = 0
        self.fail_waits = 0
        self.undrawable: set[str] = set()
        self.num_tokens_run: dict[str, int] = {}
        self.outputs: list[SchedulerOutput] = []
        self.num_wasted_rows = 0
        self.layers: Sequence[LayersWritten] = ()
        self._block_sizes = tuple(block_sizes)
        self._sampler = sampler
        self._late = late
        self._under_way: deque[LateStep] = deque()
        # What the device drew in the last step that ran.
        self._drawn: dict[str, int] = {}
        self._broken: set[Request] = set()

    def prepare(self) -> bool:
        return False

    def launch(self, output: SchedulerOutput) -> PendingStep:
        self.outputs.append(output)
        if self.fail_steps:
            self.fail_steps -= 1
            raise RuntimeError("the device is on fire")
        assert len(self._under_way) < (2 if self._late else 1), "too far ahead"
        ids = [row.request.request_id for row in output.rows]
        assert len(set(ids)) == len(ids), "a request twice in a step"
        ones = [row.num_tokens == 1 for row in output.rows]
        assert ones == sorted(ones, reverse=True), "one-token rows come first"
        rows = [self._launch_row(row) for row in output.rows]
        written = {block: row for row in rows for block in row.written(self._block_sizes)}
        for step in self._under_way:
            for block in written.keys() & step.written.keys():
                assert written[block].inherits(step.written[block]), f"{block} is written for two at a time"
        layers = self.layers if output.tells_layers else ()
        step = LateStep(self, output, rows, written, layers)
        self._under_way.append(step)
        return step if self._late else DoneStep(step.wait(), layers)

    def check_granted(self, group: int, block_ids: Sequence[int]) -> None:
        """Blocks that another process may write into from now on are touched by no step under way."""
        for step in self._under_way:
            touched = {copy.src for copy in step.output.copies if copy.group == group}
            touched |= {copy.dst for copy in step.output.copies if copy.group == group}
            touched |= {out.block_id for out in step.output.swap_outs if out.group == group}
            touched |= {swap.block_id for swap in step.output.swap_ins if swap.group == group}
            for row in step.rows:
                touched.update(row.tables[group])
            assert not touched & set(block_ids), "a granted block is touched by a step under way"

    def finish(self, step: LateStep) -> StepResult:
        assert self._under_way.popleft() is step, "steps end in order"
        if self.fail_waits:
            self.fail_waits -= 1
            self._broken.update(row.request for row in step.rows)
            raise RuntimeError("the device caught fire")
        output = step.output
        if self._sampler is not None:
            self._sampler.forget(output.finished_request_ids)
        if not self._late:
            self.save(output.swap_outs)
        for group, slot, block_id in output.swap_ins:
            self.store[group][block_id] = self.slots[group][slot]
        for copy in output.copies:
            self.store[copy.group][copy.dst] = self.store[copy.group][copy.src]
        values = {row.request.request_id: self._run_row(row) for row in step.rows}
        if self._late:
            # They may be made beside the rows: as late as may be.
            self.save(output.swap_outs)
        drawn = self._sample([row for row in step.rows if row.sample], values)
        drawn |= {i: SamplingError("not finite") for i in self.undrawable & drawn.keys()}
        # As on a device, a token that could not be drawn is one outside the vocabulary.
        self._drawn = {
            i: token.token_id if isinstance(token, SampledToken) else -1 for i, token in drawn.items()
        }
        return StepResult(drawn)

    def _launch_row(self, row: ScheduledRow) -> LaunchedRow:
        request, end = row.request, row.start + row.num_tokens
        num_known = len(request.token_ids)
        assert row.num_tokens >= 1
        assert request.num_computed_tokens == end, "it advances when it is scheduled"
        if row.pending:
            assert self._late
            assert row.num_tokens == 1
            assert row.sample
            assert row.start == num_known
            before = [r for r in self._under_way[-1].rows if r.request is request]
            assert [r.sample for r in before] == [True], "the step before draws what is pending"
        else:
            assert row.sample == (end == num_known)
            assert end <= num_known
        tables = [list(ids) for ids in request.block_ids]
        for ids, size in zip(tables, self._block_sizes, strict=True):
            assert len(ids) * size >= end, "a row without a block"
        known = request.token_ids[:end]
        return LaunchedRow(request, row.start, row.num_tokens, row.sample, row.pending, known, tables)

    def save(self, outs: Sequence[SwapOut]) -> None:
        for group, block_id, slot in outs:
            self.slots[group][slot] = self.store[group][block_id]

    def fill(self, request: Request, block_ids: Sequence[Sequence[int]], start: int) -> None:
        """Write the KV of tokens[start:], as another worker would."""
        for group, ids in enumerate(block_ids):
            self._write(group, ids, start, fingerprints(request.token_ids, request.cache_salt)[start:])

    def read(self, group: int, block_ids: Sequence[int], num_tokens: int) -> list[int]:
        values: list[int] = self.store[group][list(block_ids)].reshape(-1)[:num_tokens].tolist()
        return values

    def poison(self, group: int, block_ids: Sequence[int]) -> None:
        self.store[group][list(block_ids)] = POISON

    def _run_row(self, row: LaunchedRow) -> int:
        request, start = row.request, row.start
        tokens = [*row.token_ids, self._drawn.get(request.request_id, 0)] if row.pending else row.token_ids
        known = fingerprints(tokens, request.cache_salt)
        self.num_wasted_rows += request.status is RequestStatus.FINISHED
        for group, ids in enumerate(row.tables):
            if request not in self._broken:
                assert self.read(group, ids, start) == known[:start], (
                    f"{request.request_id}: wrong KV in a block"
                )
            self._write(group, ids, start, known[start:])
        self.num_tokens_run[request.request_id] = (
            self.num_tokens_run.get(request.request_id, 0) + row.num_tokens
        )
        return known[-1]

    def _write(self, group: int, block_ids: Sequence[int], start: int, values: Sequence[int]) -> None:
        size = self.store[group].shape[1]
        positions = np.arange(start, start + len(values))
        self.store[group][np.array(block_ids)[positions // size], positions % size] = values

    def _sample(self, rows: Sequence[LaunchedRow], values: dict[str, int]) -> dict[str, Draw]:
        ids = [row.request.request_id for row in rows]
        if self._sampler is None:
            return {request_id: SampledToken(next_token(values[request_id])) for request_id in ids}
        if not rows:
            return {}
        logits = torch.from_numpy(
            np.stack([np.random.default_rng(values[i]).normal(0, 2, VOCAB_SIZE) for i in ids])
        ).float()
        logits[:, list(EOS)] = -20.0
        tokens = self._sampler.sample(logits, [row.request for row in rows])
        return dict(zip(ids, tokens, strict=True))
