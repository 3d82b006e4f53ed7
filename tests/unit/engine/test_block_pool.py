import pytest

from engine.errors import OutOfBlocksError
from engine.kv.block_pool import BlockPool
from kvhash.chain import HashChain


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(4)
    pool.allocate(3)
    with pytest.raises(OutOfBlocksError, match="2 KV blocks wanted, 1 of 4 free"):
        pool.allocate(2)
    assert pool.num_free == 1
    pool.check_invariants()


def test_a_block_is_freed_with_its_last_holder() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.share(block)
    pool.release(block)
    assert pool.num_free == 1
    pool.release(block)
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="freed twice"):
        pool.release(block)


def test_blank_blocks_go_before_cached_ones_and_those_in_order_of_release() -> None:
    pool = BlockPool(3)
    first, second, blank = pool.allocate(3)
    pool.register(first, b"first")
    pool.register(second, b"second")
    for block in (second, first, blank):
        pool.release(block)
    assert pool.allocate(1) == [blank]
    assert pool.allocate(1) == [second]
    assert pool.lookup(b"second") is None
    assert pool.lookup(b"first") == first
    pool.check_invariants()


def test_a_cached_free_block_is_taken_back() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.register(block, b"hash")
    pool.release(block)
    found = pool.lookup(b"hash")
    assert found == block
    pool.share(block)
    assert pool.num_free == 1
    pool.allocate(1)
    assert pool.lookup(b"hash") == block
    pool.check_invariants()


def test_the_first_block_with_a_hash_keeps_it() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.register(first, b"hash")
    pool.register(second, b"hash")
    assert pool.lookup(b"hash") == first
    pool.release(second)
    pool.check_invariants()
    assert pool.lookup(b"hash") == first


@pytest.mark.parametrize("breakage", ["leak", "overlap", "hash"])
def test_check_invariants_notices(breakage: str) -> None:
    pool = BlockPool(3)
    block, other = pool.allocate(2)
    pool.register(block, b"hash")
    match breakage:
        case "leak":
            pool._refs[block] = 0
        case "overlap":
            pool._blank.append(other)
        case "hash":
            pool._cached[b"hash"] = other
    with pytest.raises(AssertionError):
        pool.check_invariants()


def test_hashes_name_salt_and_all_tokens_before() -> None:
    tokens = list(range(12))
    chain = HashChain("", 4)
    hashes = [chain.get(tokens, index) for index in (2, 0, 1)]
    assert len(set(hashes)) == 3
    assert HashChain("", 4).get(tokens, 2) == hashes[0]
    assert HashChain("tenant", 4).get(tokens, 0) != hashes[1]
    assert HashChain("", 4).get([9, *tokens[1:]], 2) != hashes[0]
    # The same four tokens elsewhere are another block.
    assert HashChain("", 4).get(tokens[4:], 0) != hashes[2]
