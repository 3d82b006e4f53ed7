"""Whether the answers under load are those that the same prompts get alone.

The prompts are asked again, one at a time, after the run, under a cache salt of their own: a cached
block that the run corrupted can then not make the two answers agree.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loadtest.errors import RequestFailed
from loadtest.plan import Plan
from loadtest.prompts import Prompts
from loadtest.record import Call, Outcome, Record
from loadtest.scenario import Scenario
from loadtest.targets import open_target

_SALT = "loadtest-verify"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An answer that differs.

    Attributes:
        index: of the request.
        at: first token (HTTP: character) that differs.
        alone, under_load: the answers from there on, shortened.
    """

    index: int
    at: int
    alone: str
    under_load: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked.

    Attributes:
        prompts: asked alone.
        answers: compared with them; of cancelled and failed requests, the part that came.
        mismatches: answers that differ.
        unasked: prompts that got no answer alone.
    """

    prompts: int
    answers: int
    mismatches: list[Mismatch]
    unasked: int

    @property
    def is_right(self) -> bool:
        """Whether every answer compared was right, and every prompt could be compared."""
        return not self.mismatches and not self.unasked


async def verify(
    scenario: Scenario,
    records: Sequence[Record],
    *,
    most_prompts: int,
    salt: str = _SALT,
    on_prompt: Callable[[int, int], None] = lambda done, of: None,
) -> Verification:
    """Compare the answers of a greedy run with those that the prompts get alone.

    Args:
        records: with their answers kept.
        most_prompts: distinct prompts to check, evenly spread; the rest are not.
        salt: keeps the check off the run's cached blocks; empty: the server takes none.
        on_prompt: told how many are done, of how many.
    Raises:
        RequestFailed: the target cannot be reached.
    """
    by_content: dict[int, list[Record]] = {}
    for record in records:
        if record.answer:
            by_content.setdefault(record.content, []).append(record)
    contents = sorted(by_content)
    step = max(1, -(-len(contents) // most_prompts))
    chosen = contents[::step]
    plan, prompts, target = Plan(scenario), Prompts(scenario), open_target(scenario)
    await target.open()
    mismatches: list[Mismatch] = []
    answers = unasked = 0
    try:
        for done, content in enumerate(chosen):
            first = by_content[content][0]
            request = replace(plan.request(first.index), cancel_after=None, read_delay_s=0.0)
            start = time.monotonic()
            call = Call(
                request=request,
                prompt=prompts.prompt(request),
                record=Record(first.index, content, first.input_tokens, first.output_tokens, False, 0.0),
                now=lambda start=start: time.monotonic() - start,  # type: ignore[misc]
                on_tokens=lambda: None,
                keep_answer=True,
                cache_salt=salt,
            )
            try:
                async with asyncio.timeout(scenario.timeout_s):
                    await target.answer(call, target.prepare(call))
            except (RequestFailed, TimeoutError):
                unasked += 1
                continue
            for record in by_content[content]:
                answers += 1
                found = _compare(call.record.answer, record)
                if found is not None:
                    mismatches.append(found)
            on_prompt(done + 1, len(chosen))
    finally:
        await target.close()
    return Verification(len(chosen), answers, mismatches, unasked)


def _compare(alone: list[int] | str | None, record: Record) -> Mismatch | None:
    answer = record.answer
    assert answer is not None
    if alone is None:
        alone = answer[:0]
    size = len(answer)
    is_whole = record.outcome is Outcome.OK
    if answer == (alone if is_whole else alone[:size]):
        return None
    at = next(
        (i for i, (a, b) in enumerate(zip(alone, answer, strict=False)) if a != b), min(len(alone), size)
    )
    return Mismatch(record.index, at, str(alone[at : at + 20]), str(answer[at : at + 20]))
