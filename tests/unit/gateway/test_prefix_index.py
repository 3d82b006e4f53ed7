from __future__ import annotations

import pytest

from baton.v1.registry_pb2 import BlockEvents
from kvhash.chain import HashChain
from services.gateway.prefix_index import (
    EXPECT_S,
    MAX_PROMPT_BLOCKS,
    KnownBlocks,
    PromptBlocks,
    leading_blocks,
)

TOKENS = list(range(70))


def names(count: int, salt: str = "") -> list[bytes]:
    chain = HashChain(salt, 16)
    return [chain.get(TOKENS, index) for index in range(count)]


def events(
    after: int, until: int, stored: list[bytes] | None = None, evicted: list[bytes] | None = None
) -> BlockEvents:
    return BlockEvents(after_seq=after, until_seq=until, stored=stored or [], evicted=evicted or [])


def test_a_prompt_has_the_names_that_the_engine_caches_under() -> None:
    prompt = PromptBlocks(TOKENS, "tenant")
    assert prompt.num_tokens == 70
    assert prompt.hashes(16) == names(4, "tenant")
    assert not set(prompt.hashes(16)) & set(names(4))


def test_a_long_prompt_is_hashed_in_part() -> None:
    assert len(PromptBlocks([1] * (MAX_PROMPT_BLOCKS + 5), "").hashes(1)) == MAX_PROMPT_BLOCKS


def test_events_follow_each_other() -> None:
    known, (a, b, c) = KnownBlocks(10), names(3)
    assert known.apply(BlockEvents(reset=True, until_seq=2, stored=[a, b])) == 2
    assert known.apply(events(2, 4, stored=[c], evicted=[a])) == 4
    assert [name in known for name in (a, b, c)] == [False, True, True]


def test_a_gap_is_answered_with_where_it_stands_and_a_reset_closes_it() -> None:
    known, (a, b) = KnownBlocks(10), names(2)
    known.apply(BlockEvents(reset=True, until_seq=5, stored=[a]))
    assert known.apply(events(7, 9, stored=[b])) == 5
    assert b not in known
    assert known.apply(BlockEvents(reset=True, until_seq=9, stored=[b])) == 9
    assert (a in known, b in known) == (False, True)


def test_no_more_is_kept_than_the_pool_holds_and_no_odd_hash() -> None:
    known = KnownBlocks(2)
    known.apply(BlockEvents(reset=True, until_seq=4, stored=[b"short", *names(4)]))
    assert len(known) == 2
    known.expect([bytes([i]) * 16 for i in range(9)], now=0.0)
    assert len(known) == 4


def test_what_was_sent_there_is_expected_until_it_is_reported_or_too_old() -> None:
    known, (a, b, c) = KnownBlocks(10), names(3)
    known.expect([a, b, c], now=100.0)
    known.apply(BlockEvents(reset=True, until_seq=2, stored=[a], evicted=[b]))
    assert [name in known for name in (a, b, c)] == [True, False, True]
    known.expire(100.0 + EXPECT_S - 0.1)
    assert c in known
    known.expire(100.0 + EXPECT_S)
    assert [name in known for name in (a, b, c)] == [True, False, False]


def test_expecting_again_prolongs() -> None:
    known, (a, b) = KnownBlocks(10), names(2)
    known.expect([a, b], now=0.0)
    known.expect([a], now=EXPECT_S / 2)
    known.expire(EXPECT_S)
    assert (a in known, b in known) == (True, False)


@pytest.mark.parametrize(
    ("held", "count"), [([], 0), ([0, 1], 2), ([1, 2], 0), ([0, 2, 3], 1), ([0, 1, 2, 3], 4)]
)
def test_only_blocks_without_a_gap_count(held: list[int], count: int) -> None:
    hashes = names(4)
    one, all_of_them = KnownBlocks(10), KnownBlocks(10)
    one.apply(BlockEvents(reset=True, until_seq=1, stored=[hashes[index] for index in held]))
    all_of_them.apply(BlockEvents(reset=True, until_seq=1, stored=hashes))
    assert leading_blocks([one, all_of_them, KnownBlocks(10)], hashes) == [count, 4, 0]
