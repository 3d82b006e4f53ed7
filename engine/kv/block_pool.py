"""The blocks of one cache group: who holds them, which are free, which are cached.

A block is *used* while its ref count is above 0; *retiring* if nobody holds it, but a
step that may touch it is still under way on the device; else *free*. The three
partition the pool. A free block is either blank, or still cached: its hash is kept, so
that a later request may take it back, until its turn comes to be overwritten. Blank
blocks go first, then cached ones, least recently released first.

Why blocks retire: whoever gets a block may write into it from another process at once,
and such writes do not wait for this device's queue of steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from engine.errors import OutOfBlocksError
from engine.kv.block_events import BlockJournal


class BlockPool:
    """Ref counts and the prefix cache of `num_blocks` blocks. Not thread-safe.

    Args:
        journal: is told which hashes the cache gains and loses.
        first_block: id of the first of them; those before are other workers'.
        below: caches what this pool evicts, if there is such a tier.
    """

    def __init__(
        self,
        num_blocks: int,
        journal: BlockJournal | None = None,
        *,
        first_block: int = 0,
        below: BlockPool | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_ids = range(first_block, first_block + num_blocks)
        self._journal = journal
        self._refs = [0] * self.block_ids.stop
        self._hashes: list[bytes | None] = [None] * self.block_ids.stop
        self._blank = list(reversed(self.block_ids))
        # A dict keeps insertion order: the first key is the least recently released. Clean blocks are
        # cached in the tier below as well, so they go first.
        self._below = below
        self._clean: dict[int, None] = {}
        self._evictable: dict[int, None] = {}
        self._cached: dict[bytes, int] = {}
        # The newest step under way, 0: none; and the newest that is over.
        self._newest = 0
        self._over = 0
        # Block -> step after which it is free.
        self._retiring: dict[int, int] = {}
        # Blocks that a step reads although no table of that step holds them.
        self._pinned: dict[int, int] = {}
        # The guard's own record: the newest step that writes each block.
        self._written_in = [0] * self.block_ids.stop

    @property
    def num_free(self) -> int:
        """Blocks that can be had now, cached ones included."""
        return len(self._blank) + len(self._clean) + len(self._evictable)

    @property
    def num_lossless(self) -> int:
        """Free blocks with which nothing is lost: blank ones, and those cached in the tier below too."""
        return len(self._blank) + len(self._clean)

    @property
    def num_retiring(self) -> int:
        """Blocks that nobody holds and that become free once the steps under way are over."""
        return len(self._retiring)

    def begin_step(self, step: int, written: Iterable[int]) -> None:
        """A step goes to the device; blocks released from now on stay out of reach until it is over.

        Args:
            step: number, growing.
            written: blocks that it writes.
        """
        self._newest = step
        written_in = self._written_in
        for block_id in written:
            written_in[block_id] = step

    def end_step(self, step: int) -> None:
        """A step is over, and so are all before it: blocks that waited for it are free now."""
        self._over = step
        if self._newest <= step:
            self._newest = 0
        if self._pinned:
            self._pinned = {block: until for block, until in self._pinned.items() if until > step}
        if self._retiring:
            for block_id in [block for block, until in self._retiring.items() if until <= step]:
                del self._retiring[block_id]
                self._free(block_id)

    def pin(self, block_id: int, step: int) -> None:
        """Keep a block out of reach until a step is over, even if its holders let go before."""
        self._pinned[block_id] = step

    def ref_count(self, block_id: int) -> int:
        """How many tables hold the block."""
        return self._refs[block_id]

    def is_free(self, block_id: int) -> bool:
        """Whether the block counts in `num_free`; that of a cached block, for which it is asked."""
        return block_id in self._clean or block_id in self._evictable

    def is_clean(self, block_id: int) -> bool:
        """Whether the block counts in `num_lossless`; that of a cached block, for which it is asked."""
        return block_id in self._clean

    def allocate(self, count: int) -> list[int]:
        """Take free blocks, each with ref count 1; evicts cached ones if it must.

        Raises:
            OutOfBlocksError: fewer are free; nothing was taken.
        """
        if count > self.num_free:
            raise OutOfBlocksError(f"{count} KV blocks wanted, {self.num_free} of {self.num_blocks} free")
        return [self._take() for _ in range(count)]

    def share(self, block_id: int) -> None:
        """Hold a used block once more, or take a cached one back that nobody holds."""
        if self._refs[block_id] == 0:
            places = (self._retiring, self._clean, self._evictable)
            del next(place for place in places if block_id in place)[block_id]
        self._refs[block_id] += 1

    def release(self, block_id: int) -> None:
        """Let go of a block; with its last holder it becomes free, and stays cached if it was.

        While a step is under way it retires first.
        """
        assert self._refs[block_id] > 0, f"block {block_id} freed twice"
        self._refs[block_id] -= 1
        if self._refs[block_id] == 0:
            until = max(self._newest, self._pinned.get(block_id, 0))
            if until:
                self._retiring[block_id] = until
            else:
                self._free(block_id)

    def lookup(self, block_hash: bytes) -> int | None:
        """Return the cached block with this hash, used or not. Modifies nothing."""
        return self._cached.get(block_hash)

    def is_cached(self, block_id: int) -> bool:
        """Whether the block is one that `lookup` finds."""
        return self._hashes[block_id] is not None

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Cache a used block whose slots are all final. The first block with a hash keeps it."""
        assert self._refs[block_id] > 0, f"block {block_id} registered while free"
        assert self._hashes[block_id] is None, f"block {block_id} registered twice"
        if block_hash not in self._cached:
            self._hashes[block_id] = block_hash
            self._cached[block_hash] = block_id
            if self._journal is not None:
                self._journal.stored(block_hash)

    def unregister(self, block_id: int) -> None:
        """Take a block out of the cache: it does not hold what its hash says."""
        block_hash = self._hashes[block_id]
        if block_hash is None:
            return
        self._uncache(block_id, block_hash)
        for place in (self._clean, self._evictable):
            if block_id in place:
                del place[block_id]
                self._blank.append(block_id)

    def clean(self, count: int, step: int) -> list[tuple[int, bytes]]:
        """Return up to `count` blocks that are lost next, with their hashes; a step is to copy them.

        They are out of reach until it is over.
        """
        cleaned = []
        for block_id in tuple(islice(self._evictable, count)):
            block_hash = self._hashes[block_id]
            assert block_hash is not None
            del self._evictable[block_id]
            self._retiring[block_id] = step
            cleaned.append((block_id, block_hash))
        return cleaned

    def _free(self, block_id: int) -> None:
        block_hash = self._hashes[block_id]
        if block_hash is None:
            self._blank.append(block_id)
        elif self._below is not None and self._below.lookup(block_hash) is not None:
            self._clean[block_id] = None
        else:
            self._evictable[block_id] = None

    def _uncache(self, block_id: int, block_hash: bytes) -> None:
        del self._cached[block_hash]
        self._hashes[block_id] = None
        if self._journal is not None:
            self._journal.evicted(block_hash)

    def _take(self) -> int:
        if self._blank:
            block_id = self._blank.pop()
        else:
            place = self._clean or self._evictable
            block_id = next(iter(place))
            del place[block_id]
            block_hash = self._hashes[block_id]
            assert block_hash is not None
            self._uncache(block_id, block_hash)
        assert self._refs[block_id] == 0, f"block {block_id} is free and held"
        assert self._written_in[block_id] <= self._over, (
            f"block {block_id} is given away while step {self._written_in[block_id]} writes it"
        )
        self._refs[block_id] = 1
        return block_id

    def check_invariants(self) -> None:
        """Assert that free, retiring and used partition the pool, and the cache is one to one.

        A block that a step under way writes is not free.
        """
        blank, evictable = set(self._blank), set(self._evictable) | set(self._clean)
        assert len(evictable) == len(self._evictable) + len(self._clean), "a block is clean and not"
        assert len(blank) == len(self._blank), "a blank block is listed twice"
        assert not blank & evictable, "a block is blank and cached"
        free = blank | evictable
        assert not free & self._retiring.keys(), "a block is free and retires"
        assert all(self._over < until for until in self._retiring.values()), "a block retires for ever"
        assert self._newest == 0 or self._newest > self._over, "a step is under way and over"
        for block_id in self.block_ids:
            refs = self._refs[block_id]
            assert refs >= 0, f"block {block_id} has ref count {refs}"
            assert (refs == 0) == (block_id in free or block_id in self._retiring), (
                f"block {block_id}: ref count {refs}, free and used overlap"
            )
            assert block_id not in free or self._written_in[block_id] <= self._over, (
                f"block {block_id} is free while a step writes it"
            )
            block_hash = self._hashes[block_id]
            assert block_hash is None or self._cached.get(block_hash) == block_id, "hash names another block"
            assert (block_id in evictable) == (block_id in free and block_hash is not None), (
                "cached block misfiled"
            )
        assert len(self._cached) == sum(h is not None for h in self._hashes), (
            "cache names a block without hash"
        )
