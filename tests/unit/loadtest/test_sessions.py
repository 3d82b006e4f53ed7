"""Sessions of several turns: what their prompts share."""

from __future__ import annotations

import itertools

import pytest

from loadtest.errors import UsageError
from loadtest.plan import Plan, Request
from loadtest.prompts import Prompts
from loadtest.scenario import Scenario


def scenario(**fields: object) -> Scenario:
    given = {
        "target": "http://x",
        "concurrency": 1,
        "requests": 3,
        "input": "uniform:5:40",
        "output": "uniform:2:30",
    }
    return Scenario(**{**given, **fields})  # type: ignore[arg-type]


def session(plan: Plan, first: Request) -> list[Request]:
    turns = [first]
    while (following := plan.following(turns[-1])) is not None:
        turns.append(following)
    return turns


def test_each_prompt_goes_on_from_the_one_before_and_its_answer() -> None:
    load = scenario(turns=4)
    plan, prompts = Plan(load), Prompts(load)
    assert plan.size == 12
    seen: set[int] = set()
    for number in range(3):
        turns = session(plan, plan.request(4 * number))
        assert [one.turn for one in turns] == [0, 1, 2, 3]
        assert [one.index for one in turns] == list(range(4 * number, 4 * number + 4))
        seen |= {one.content for one in turns}
        for before, after in itertools.pairwise(turns):
            new = after.input_tokens - before.input_tokens - before.output_tokens
            assert 5 <= new <= 40
            whole = prompts.prompt(after)
            assert isinstance(whole, tuple)
            assert len(whole) == after.input_tokens
            assert whole[: before.input_tokens] == prompts.prompt(before)
    assert len(seen) == 12, "every turn is a prompt of its own"
    starts = [prompts.prompt(plan.request(4 * number)) for number in range(3)]
    assert len({one[:5] for one in starts}) == 3


def test_only_first_turns_have_planned_times_and_long_sessions_end() -> None:
    load = scenario(concurrency=0, rate=10, requests=5, turns=50, max_input=200)
    plan = Plan(load)
    for number in range(5):
        turns = session(plan, plan.request(50 * number))
        assert turns[0].at_s is not None
        assert all(one.at_s is None for one in turns[1:])
        assert turns[-1].input_tokens <= 200
        assert 2 <= len(turns) < 50


def test_one_turn_is_as_before_and_none_is_refused() -> None:
    load = scenario()
    assert [Plan(load).request(i).content for i in range(3)] == [0, 1, 2]
    assert Plan(load).following(Plan(load).request(0)) is None
    with pytest.raises(UsageError, match="turns: must be at least 1"):
        scenario(turns=0)
