from __future__ import annotations

import pytest

from baton.v1.registry_pb2 import BlockEvents
from kvhash.chain import HashChain
from services.gateway.prefix_index import (
    MAX_PROMPT_BLOCKS,
    SETTLE_BEATS,
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
    known.use([bytes([i]) * 16 for i in range(9)])
    assert len(known) == 2


def beat(known: KnownBlocks, times: int = 1) -> None:
    for _ in range(times):
        known.on_beat()


def test_what_was_sent_there_is_expected_however_long_it_waits() -> None:
    known, (a, b, c) = KnownBlocks(10), names(3)
    known.use([a, b, c])
    beat(known, 100)
    known.apply(BlockEvents(reset=True, until_seq=3, stored=[a, c]))
    known.apply(events(3, 4, evicted=[c]))  # computing it brings it back
    beat(known, 100)
    assert [name in known for name in (a, b, c)] == [True, True, True]


def test_what_is_not_reported_after_its_last_request_is_given_up() -> None:
    known, (a, b, c) = KnownBlocks(10), names(3)
    known.use([a, b, c])
    known.use([a, b])
    known.let_go([a, b, c])
    known.apply(BlockEvents(reset=True, until_seq=1, stored=[a]))
    beat(known, SETTLE_BEATS - 1)
    assert c in known
    beat(known)
    assert [name in known for name in (a, b, c)] == [True, True, False]
    known.let_go([a, b])
    beat(known, SETTLE_BEATS)
    assert [name in known for name in (a, b, c)] == [True, False, False]


def test_being_sent_again_ends_the_wait_for_a_report() -> None:
    known, (a,) = KnownBlocks(10), names(1)
    known.use([a])
    known.let_go([a])
    known.use([a])
    beat(known, SETTLE_BEATS)
    assert a in known


def test_what_the_pool_will_drop_for_what_waits_does_not_count() -> None:
    known, (a, b, c, d) = KnownBlocks(3), names(4)
    known.apply(BlockEvents(reset=True, until_seq=3, stored=[a, b, c]))
    known.use([b, c])  # the prefix outlives what follows it
    known.use([d])
    assert [name in known for name in (a, b, c, d)] == [False, True, True, True]
    known.use([a])
    assert [name in known for name in (a, b, c, d)] == [True, True, False, True]
    known.let_go([b, c])
    known.let_go([d])
    known.let_go([a])
    beat(known, SETTLE_BEATS)
    assert [name in known for name in (a, b, c, d)] == [False, True, False, False]


@pytest.mark.parametrize(
    ("held", "count"), [([], 0), ([0, 1], 2), ([1, 2], 0), ([0, 2, 3], 1), ([0, 1, 2, 3], 4)]
)
def test_only_blocks_without_a_gap_count(held: list[int], count: int) -> None:
    hashes = names(4)
    one, all_of_them = KnownBlocks(10), KnownBlocks(10)
    one.apply(BlockEvents(reset=True, until_seq=1, stored=[hashes[index] for index in held]))
    all_of_them.apply(BlockEvents(reset=True, until_seq=1, stored=hashes))
    assert leading_blocks([one, all_of_them, KnownBlocks(10)], hashes) == [count, 4, 0]
