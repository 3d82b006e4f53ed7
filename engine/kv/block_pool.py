"""The blocks of one cache group: who holds them, which are free, which are cached.

A block is *used* while its ref count is above 0, else *free*; the two partition
the pool. A free block is either blank, or still cached: its hash is kept, so that
a later request may take it back, until its turn comes to be overwritten. Blank
blocks go first, then cached ones, least recently released first.
"""

from __future__ import annotations

from engine.errors import OutOfBlocksError
from engine.kv.block_events import BlockJournal


class BlockPool:
    """Ref counts and the prefix cache of `num_blocks` blocks. Not thread-safe.

    Args:
        journal: is told which hashes the cache gains and loses.
        first_block: id of the first of them; those before are other workers'.
    """

    def __init__(self, num_blocks: int, journal: BlockJournal | None = None, *, first_block: int = 0) -> None:
        self.num_blocks = num_blocks
        self.block_ids = range(first_block, first_block + num_blocks)
        self._journal = journal
        self._refs = [0] * self.block_ids.stop
        self._hashes: list[bytes | None] = [None] * self.block_ids.stop
        self._blank = list(reversed(self.block_ids))
        # A dict keeps insertion order: the first key is the least recently released.
        self._evictable: dict[int, None] = {}
        self._cached: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._blank) + len(self._evictable)

    def ref_count(self, block_id: int) -> int:
        """How many tables hold the block."""
        return self._refs[block_id]

    def allocate(self, count: int) -> list[int]:
        """Take free blocks, each with ref count 1; evicts cached ones if it must.

        Raises:
            OutOfBlocksError: fewer are free; nothing was taken.
        """
        if count > self.num_free:
            raise OutOfBlocksError(f"{count} KV blocks wanted, {self.num_free} of {self.num_blocks} free")
        return [self._take() for _ in range(count)]

    def share(self, block_id: int) -> None:
        """Hold a used block once more, or take a free cached one back."""
        if self._refs[block_id] == 0:
            del self._evictable[block_id]
        self._refs[block_id] += 1

    def release(self, block_id: int) -> None:
        """Let go of a block; with its last holder it becomes free, and stays cached if it was."""
        assert self._refs[block_id] > 0, f"block {block_id} freed twice"
        self._refs[block_id] -= 1
        if self._refs[block_id] == 0:
            if self._hashes[block_id] is None:
                self._blank.append(block_id)
            else:
                self._evictable[block_id] = None

    def lookup(self, block_hash: bytes) -> int | None:
        """Return the cached block with this hash, used or free. Modifies nothing."""
        return self._cached.get(block_hash)

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Cache a used block whose slots are all final. The first block with a hash keeps it."""
        assert self._refs[block_id] > 0, f"block {block_id} registered while free"
        assert self._hashes[block_id] is None, f"block {block_id} registered twice"
        if block_hash not in self._cached:
            self._hashes[block_id] = block_hash
            self._cached[block_hash] = block_id
            if self._journal is not None:
                self._journal.stored(block_hash)

    def _take(self) -> int:
        if self._blank:
            block_id = self._blank.pop()
        else:
            block_id = next(iter(self._evictable))
            del self._evictable[block_id]
            block_hash = self._hashes[block_id]
            assert block_hash is not None
            del self._cached[block_hash]
            self._hashes[block_id] = None
            if self._journal is not None:
                self._journal.evicted(block_hash)
        assert self._refs[block_id] == 0, f"block {block_id} is free and held"
        self._refs[block_id] = 1
        return block_id

    def check_invariants(self) -> None:
        """Raise AssertionError unless free and used partition the pool and the cache is one to one."""
        blank, evictable = set(self._blank), set(self._evictable)
        assert len(blank) == len(self._blank), "a blank block is listed twice"
        assert not blank & evictable, "a block is blank and cached"
        free = blank | evictable
        for block_id in self.block_ids:
            refs = self._refs[block_id]
            assert refs >= 0, f"block {block_id} has ref count {refs}"
            assert (refs == 0) == (block_id in free), (
                f"block {block_id}: ref count {refs}, free and used overlap"
            )
            block_hash = self._hashes[block_id]
            assert block_hash is None or self._cached.get(block_hash) == block_id, "hash names another block"
            assert (block_id in evictable) == (refs == 0 and block_hash is not None), "cached block misfiled"
        assert len(self._cached) == sum(h is not None for h in self._hashes), (
            "cache names a block without hash"
        )
