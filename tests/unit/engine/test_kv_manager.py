import pytest

from engine.errors import OutOfBlocksError
from engine.kv.kv_manager import KVManager
from engine.kv.layout import CacheGroup, CacheKind
from engine.request import Request
from engine.step import BlockCopy, ScheduledRow
from tests.support.engine_builders import create_group, create_request


def create_manager(num_blocks: int = 8, prefix_cache: bool = True) -> KVManager:
    return KVManager((create_group(4),), num_blocks, prefix_cache)


def test_a_prompt_to_compute_keeps_a_token_and_a_reservation_needs_none() -> None:
    kv = create_manager()
    first = create_request(list(range(8)))
    kv.admit(first, 8, leave=1, spare=0)
    first.num_computed_tokens = 8
    kv.register(first, first.num_computed_tokens)

    computing = create_request(list(range(8)))
    kv.admit(computing, 9, leave=1, spare=0)
    assert computing.num_computed_tokens == 4
    assert computing.block_ids[0][0] == first.block_ids[0][0]
    assert computing.block_ids[0][1] != first.block_ids[0][1]

    reserving = create_request(list(range(8)))
    kv.admit(reserving, 9, leave=0, spare=0)
    assert reserving.num_computed_tokens == 8
    assert reserving.block_ids[0][:2] == first.block_ids[0]


def test_salts_share_nothing() -> None:
    kv = create_manager()
    first = create_request(list(range(8)))
    kv.admit(first, 8, leave=1, spare=0)
    first.num_computed_tokens = 8
    kv.register(first, first.num_computed_tokens)
    other = create_request(list(range(8)), cache_salt="tenant")
    kv.admit(other, 8, leave=0, spare=0)
    assert other.num_computed_tokens == 0


def test_without_prefix_cache_nothing_is_found() -> None:
    kv = create_manager(prefix_cache=False)
    for _ in range(2):
        request = create_request(list(range(8)))
        kv.admit(request, 8, leave=1, spare=0)
        assert request.num_computed_tokens == 0
        request.num_computed_tokens = 8
        kv.register(request, request.num_computed_tokens)
        kv.free(request)


def test_blocks_of_answers_may_be_kept_from_others() -> None:
    """They were computed by other kernels than the same tokens of a prompt."""
    kv = KVManager((create_group(4),), 16, prompts_only=True)
    answered = create_request(list(range(6)))
    answered.token_ids += range(6, 13)
    kv.admit(answered, 13, leave=1, spare=0)
    answered.num_computed_tokens = 12
    kv.register(answered, 12)
    follow_up = create_request(list(range(13)))
    kv.admit(follow_up, 14, leave=1, spare=0)
    assert follow_up.num_computed_tokens == 4, "the block with the prompt's last tokens has one of the answer"
    follow_up.num_computed_tokens = 12
    kv.register(follow_up, 12)
    resumed = create_request(list(range(6)))
    resumed.token_ids += range(6, 13)
    kv.admit(resumed, 14, leave=1, spare=0)
    assert resumed.num_computed_tokens == 4, "what the follow-up computed as a prompt is not the answer's"
    assert kv.adopt(resumed, leave=1) == 0
    kv.check_invariants()


def test_admission_counts_pinned_and_spare_blocks() -> None:
    kv = create_manager(num_blocks=3)
    first = create_request(list(range(8)))
    kv.admit(first, 8, leave=1, spare=0)
    first.num_computed_tokens = 8
    kv.register(first, first.num_computed_tokens)
    kv.free(first)
    # Two cached blocks and one blank are free; the hit takes two of them back.
    again = create_request(list(range(8)))
    with pytest.raises(OutOfBlocksError):
        kv.admit(again, 9, leave=0, spare=1)
    assert kv.num_free == 3
    kv.admit(again, 9, leave=0, spare=0)
    assert again.num_computed_tokens == 8
    kv.check_invariants()


def test_a_shared_partial_block_is_copied_before_it_is_written() -> None:
    kv = create_manager()
    parent = create_request(list(range(6)))
    kv.admit(parent, 6, leave=1, spare=0)
    parent.num_computed_tokens = 6
    child = create_request(list(range(6)))
    child.num_computed_tokens = 6
    kv.fork(parent, child)
    assert child.block_ids == parent.block_ids
    shared = parent.block_ids[0][1]

    copies = kv.grow(child, 7)
    assert copies == [BlockCopy(0, shared, child.block_ids[0][1])]
    assert child.block_ids[0][0] == parent.block_ids[0][0]
    assert kv.grow(parent, 7) == [], "the parent now holds the block alone"
    kv.check_invariants()


def test_a_shared_full_block_is_not_copied() -> None:
    kv = create_manager()
    parent = create_request(list(range(4)))
    kv.admit(parent, 5, leave=1, spare=0)
    parent.num_computed_tokens = 4
    child = create_request(list(range(4)))
    child.num_computed_tokens = 4
    kv.fork(parent, child)
    assert child.block_ids[0] == parent.block_ids[0][:1], "blocks without tokens are not shared"
    assert kv.grow(child, 5) == []
    assert child.block_ids[0][1] != parent.block_ids[0][1]


def test_copy_on_write_needs_a_block_or_takes_nothing() -> None:
    kv = create_manager(num_blocks=2)
    parent = create_request(list(range(6)))
    kv.admit(parent, 6, leave=1, spare=0)
    parent.num_computed_tokens = 6
    child = create_request(list(range(6)))
    child.num_computed_tokens = 6
    kv.fork(parent, child)
    with pytest.raises(OutOfBlocksError, match="1 KV blocks wanted, 0 of 2 free"):
        kv.grow(child, 7)
    assert child.block_ids == parent.block_ids
    kv.check_invariants()


def test_adopt_takes_what_another_computed_meanwhile() -> None:
    kv = create_manager()
    first, second = create_request(list(range(10))), create_request([*range(9), 77])
    for request in (first, second):
        kv.admit(request, 10, leave=1, spare=0)
    free = kv.num_free
    first.num_computed_tokens = 10
    kv.register(first, first.num_computed_tokens)
    assert kv.adopt(second, leave=1) == 8
    assert second.num_computed_tokens == 8
    assert second.block_ids[0][:2] == first.block_ids[0][:2]
    assert kv.num_free == free + 2
    assert kv.adopt(second, leave=1) == 0
    kv.check_invariants()


def test_the_tail_of_a_prefix_is_evicted_first() -> None:
    kv = create_manager(num_blocks=3)
    first = create_request(list(range(12)))
    kv.admit(first, 12, leave=1, spare=0)
    first.num_computed_tokens = 12
    kv.register(first, first.num_computed_tokens)
    kv.free(first)
    other = create_request([50, 51, 52])
    kv.admit(other, 3, leave=1, spare=0)
    kv.free(other)
    again = create_request(list(range(12)))
    kv.admit(again, 12, leave=0, spare=0)
    assert again.num_computed_tokens == 8


def test_groups_share_prefixes_in_common_units() -> None:
    kv = KVManager((create_group(4, "a"), create_group(6, "b")), 16)
    assert kv.unit == 12
    first = create_request(list(range(30)))
    kv.admit(first, 30, leave=1, spare=0)
    first.num_computed_tokens = 30
    kv.register(first, first.num_computed_tokens)
    second = create_request(list(range(30)))
    kv.admit(second, 30, leave=1, spare=0)
    assert second.num_computed_tokens == 24
    assert second.block_ids[0][:6] == first.block_ids[0][:6]
    assert second.block_ids[1][:4] == first.block_ids[1][:4]
    kv.check_invariants()


def test_groups_that_are_not_made_of_token_blocks_are_refused() -> None:
    state = CacheGroup("state", CacheKind.STATE, (0,), 1, (1, 8), "float32")
    with pytest.raises(NotImplementedError, match="state"):
        KVManager((state,), 8)


def row(request: Request, start: int, num_tokens: int) -> ScheduledRow:
    return ScheduledRow(request, start, num_tokens, sample=False)


def test_blocks_freed_while_a_step_is_under_way_come_back_when_it_is_over() -> None:
    kv = create_manager(num_blocks=3)
    first = create_request(list(range(12)))
    kv.admit(first, 12, leave=1, spare=0)
    kv.begin_step(1, [row(first, 0, 12)])
    kv.free(first)
    kv.check_invariants()
    assert kv.num_free == 3, "nobody holds them"
    with pytest.raises(OutOfBlocksError, match="1 KV blocks and 0 spare wanted, 0 of 3 free"):
        kv.admit(create_request(4), 4, leave=1, spare=0)
    kv.end_step(1)
    kv.admit(create_request(12), 12, leave=1, spare=0)
    kv.check_invariants()


def test_a_block_waits_for_the_newest_step_under_way() -> None:
    kv = create_manager(num_blocks=1)
    first = create_request(list(range(4)))
    kv.admit(first, 4, leave=1, spare=0)
    kv.begin_step(1, [row(first, 0, 3)])
    kv.begin_step(2, [row(first, 3, 1)])
    kv.free(first)
    kv.end_step(1)
    with pytest.raises(OutOfBlocksError):
        kv.admit(create_request(4), 4, leave=1, spare=0)
    kv.end_step(2)
    kv.admit(create_request(4), 4, leave=1, spare=0)


def test_a_cached_block_is_taken_back_while_it_retires() -> None:
    kv = create_manager(num_blocks=2)
    first = create_request(list(range(8)))
    kv.admit(first, 8, leave=1, spare=0)
    kv.begin_step(1, [row(first, 0, 8)])
    kv.end_step(1)
    kv.register(first, 8)
    kv.begin_step(2, [])
    held = list(first.block_ids[0])
    kv.free(first)
    again = create_request(list(range(8)))
    kv.admit(again, 8, leave=0, spare=0)
    assert again.block_ids == [held]
    kv.check_invariants()
    kv.end_step(2)
    kv.check_invariants()


def test_the_source_of_a_copy_is_nobodys_until_the_copy_is_made() -> None:
    kv = create_manager(num_blocks=5)
    parent = create_request(list(range(6)))
    kv.admit(parent, 6, leave=1, spare=0)
    parent.num_computed_tokens = 6
    child = create_request(list(range(6)))
    child.num_computed_tokens = 6
    kv.fork(parent, child)
    (copy,) = kv.grow(child, 7)
    # Preempted in the same schedule, before the step that copies is launched.
    kv.free(parent)
    kv.admit(create_request(8), 8, leave=1, spare=0)
    assert kv._pools[0].num_free == 0
    assert kv._pools[0].num_retiring == 1
    kv.check_invariants()
    kv.begin_step(1, [row(child, 6, 1)])
    kv.end_step(1)
    kv.admit(create_request(4), 4, leave=1, spare=0)
    assert kv._pools[0].ref_count(copy.src) == 1


def test_the_guard_notices_a_block_that_is_given_away_too_early() -> None:
    """With the rule taken out, the guard alone stands between a step and somebody else's block."""
    kv = create_manager(num_blocks=2)
    first = create_request(list(range(8)))
    kv.admit(first, 8, leave=1, spare=0)
    kv.begin_step(1, [row(first, 0, 8)])
    kv._pools[0]._newest = 0
    kv.free(first)
    with pytest.raises(AssertionError, match="is free while a step writes it"):
        kv.check_invariants()
    with pytest.raises(AssertionError, match="is given away while step 1 writes it"):
        kv.admit(create_request(8), 8, leave=1, spare=0)


def test_check_invariants_notices_a_lost_reference() -> None:
    kv = create_manager()
    request = create_request(6)
    kv.admit(request, 6, leave=1, spare=0)
    kv._pools[0].share(request.block_ids[0][0])
    with pytest.raises(AssertionError, match="tables hold it"):
        kv.check_invariants()
