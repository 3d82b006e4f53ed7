from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from services.gateway.routing import (
    CACHED_WEIGHT,
    DecodeFacts,
    PrefillFacts,
    may_fill,
    num_blocks,
    pick_decode,
    pick_prefill,
    uncached_tokens,
)


def decode(
    free: int = 100,
    held: int = 0,
    new: int = 0,
    cached: int = 0,
    queued: int = 0,
    last: int = 0,
    blocks: int = 100,
) -> DecodeFacts:
    return DecodeFacts(
        num_blocks=blocks,
        block_size=16,
        free_blocks=free,
        held_blocks=held,
        new_blocks=new,
        cached_tokens=cached,
        queued_tokens=queued,
        last_pick=last,
    )


def prefill(
    pending: int = 0,
    held: int = 0,
    new: int = 0,
    cached: int = 0,
    pace: float = 0.0,
    proven: bool = True,
    last: int = 0,
) -> PrefillFacts:
    return PrefillFacts(
        pending_tokens=pending,
        held_tokens=held,
        new_tokens=new,
        cached_tokens=cached,
        tokens_per_s=pace,
        is_pace_proven=proven and pace > 0,
        last_pick=last,
    )


def test_num_blocks_rounds_up() -> None:
    assert [num_blocks(tokens, 16) for tokens in (1, 16, 17)] == [1, 1, 2]


def test_most_room_after_growth_wins() -> None:
    assert pick_decode([decode(free=10), decode(free=50), decode(free=20)], 64) == 1
    # Reported free, but this gateway's requests there will grow.
    assert pick_decode([decode(free=90, held=80), decode(free=60, held=10)], 64) == 1


def test_what_was_given_since_the_report_counts() -> None:
    assert pick_decode([decode(free=50, new=40), decode(free=30)], 64) == 1


def test_a_bigger_pool_wins_when_both_are_idle() -> None:
    assert pick_decode([decode(free=100, blocks=100), decode(free=400, blocks=400)], 64) == 1


def test_ties_go_round() -> None:
    assert pick_decode([decode(last=3), decode(last=1), decode(last=2)], 64) == 1
    assert pick_prefill([prefill(last=3), prefill(last=1)], 64) == 1


def test_overload_goes_to_the_shortest_queue() -> None:
    assert pick_decode([decode(free=0, held=300), decode(free=0, held=200)], 64) == 1


def test_a_burst_between_two_reports_is_spread_evenly() -> None:
    held = [0, 0, 0]
    last = [0, 0, 0]
    picks = Counter[int]()
    for turn in range(1, 31):
        chosen = pick_decode([decode(held=held[i], new=held[i], last=last[i]) for i in range(3)], 160)
        held[chosen] += 10
        last[chosen] = turn
        picks[chosen] += 1
    assert picks == {0: 10, 1: 10, 2: 10}


def test_a_cached_prefix_draws_a_request_to_decode_but_not_without_end() -> None:
    assert pick_decode([decode(free=90), decode(free=60, cached=64)], 64) == 1
    assert pick_decode([decode(free=90), decode(free=40, cached=64)], 64) == 0


def test_a_cached_prefix_does_not_make_a_request_queue() -> None:
    assert pick_decode([decode(free=3, cached=64), decode(free=4)], 64) == 1


def test_prompts_that_wait_on_a_co_located_worker_count_against_it() -> None:
    assert pick_decode([decode(free=90, queued=600), decode(free=60)], 64) == 1
    assert pick_decode([decode(free=90, queued=400), decode(free=60)], 64) == 0


@dataclass(frozen=True)
class Role:
    does_prefill: bool
    does_decode: bool


PREFILL, DECODE, BOTH = Role(True, False), Role(False, True), Role(True, True)


@pytest.mark.parametrize(
    ("computes", "reserved", "may"),
    [
        (PREFILL, DECODE, True),
        (PREFILL, BOTH, True),
        (PREFILL, None, True),
        (BOTH, DECODE, True),
        (BOTH, None, True),
        (BOTH, BOTH, False),
        (DECODE, DECODE, False),
        (DECODE, BOTH, False),
        (DECODE, None, False),
    ],
)
def test_who_computes_for_whom(computes: Role, reserved: Role | None, may: bool) -> None:
    for is_short in (False, True):
        assert may_fill(computes, reserved, same=False, is_short=is_short) is may


def test_who_computes_for_itself() -> None:
    for is_short in (False, True):
        assert may_fill(BOTH, BOTH, same=True, is_short=is_short)
        assert may_fill(DECODE, DECODE, same=True, is_short=is_short) is is_short


def test_fewest_queued_tokens_wins() -> None:
    assert pick_prefill([prefill(pending=500), prefill(pending=100)], 50) == 1


def test_own_tokens_count_before_any_report() -> None:
    assert pick_prefill([prefill(held=900, new=900), prefill(pending=300)], 50) == 1


def test_other_gateways_tokens_count() -> None:
    assert pick_prefill([prefill(pending=800, held=100), prefill(held=400, new=400)], 50) == 1


def test_a_cached_prefix_outweighs_a_queue_up_to_a_limit() -> None:
    cached = 1000
    for queued, chosen in ((CACHED_WEIGHT * cached - 1, 0), (CACHED_WEIGHT * cached + 1, 1)):
        assert pick_prefill([prefill(held=queued, cached=cached), prefill()], 1500) == chosen


def test_the_last_token_is_computed_even_if_all_are_cached() -> None:
    assert uncached_tokens(64, 64) == 1
    assert uncached_tokens(64, 48) == 16


def test_a_slower_worker_gets_less() -> None:
    assert pick_prefill([prefill(held=1000, pace=100), prefill(held=3000, pace=1000)], 100) == 1
    # Nothing is known of the second one yet: it is not taken for slow.
    assert pick_prefill([prefill(held=1000, pace=100), prefill(held=500)], 100) == 1
    # Nor is it for what a prompt or two took, and the other one not for fast.
    slow = prefill(held=1000, pace=10, proven=False)
    assert pick_prefill([slow, prefill(held=1500, pace=100)], 100) == 0


def test_a_burst_with_one_prefix_stays_together_until_the_queue_outweighs_it() -> None:
    held, cached = [0, 0], [0, 0]
    picks = []
    for _ in range(170):
        chosen = pick_prefill([prefill(held=held[i], new=held[i], cached=cached[i]) for i in range(2)], 1100)
        held[chosen] += uncached_tokens(1100, cached[chosen])
        cached[chosen] = 1000
        picks.append(chosen)
    # 12,000 tokens of queue at 100 each, behind the first one's 1100; from then on both share.
    assert set(picks[:110]) == {0}
    assert picks[110:].count(1) == pytest.approx(40, abs=20)
    assert abs(held[0] - held[1]) < 8000 + 1100
