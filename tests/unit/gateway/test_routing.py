from __future__ import annotations

from collections import Counter

from services.gateway.routing import DecodeFacts, PrefillFacts, num_blocks, pick_decode, pick_prefill


def decode(free: int = 100, held: int = 0, new: int = 0, last: int = 0, blocks: int = 100) -> DecodeFacts:
    return DecodeFacts(
        num_blocks=blocks, block_size=16, free_blocks=free, held_blocks=held, new_blocks=new, last_pick=last
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
    assert pick_prefill([PrefillFacts(0, 0, 0, 3), PrefillFacts(0, 0, 0, 1)]) == 1


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


def test_fewest_queued_tokens_wins() -> None:
    assert pick_prefill([PrefillFacts(500, 0, 0, 0), PrefillFacts(100, 0, 0, 0)]) == 1


def test_own_tokens_count_before_any_report() -> None:
    assert pick_prefill([PrefillFacts(0, 900, 900, 0), PrefillFacts(300, 0, 0, 0)]) == 1


def test_other_gateways_tokens_count() -> None:
    assert pick_prefill([PrefillFacts(800, 100, 0, 0), PrefillFacts(0, 400, 400, 0)]) == 1
