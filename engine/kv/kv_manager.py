"""Block tables of all requests over all cache groups, and the prefix cache across them.

Life of a table: `admit` pins cached leading blocks and allocates the rest, all or
nothing; `grow` adds blocks as tokens come and copies a shared block before it is
written; `register` offers blocks to the cache once all their slots are final;
`free` gives everything back, once. `Request.block_ids` is the table itself.

Between `begin_step` and `end_step` a step may touch blocks: what is let go of in that
time is nobody's until the step is over (block_pool.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import OutOfBlocksError
from engine.kv.block_events import BlockJournal
from engine.kv.block_pool import BlockPool
from engine.kv.layout import CacheGroup, CacheKind
from engine.request import Request
from engine.step import BlockCopy, ScheduledRow
from kvhash.chain import HashChain

_BLOCKWISE = frozenset({CacheKind.ATTENTION, CacheKind.LATENT})


@dataclass(slots=True)
class _Table:
    """What the manager keeps of one request, one entry a cache group each."""

    block_ids: list[list[int]]
    num_registered: list[int]


class KVManager:
    """Owns one pool a cache group. Not thread-safe: the engine thread alone calls it.

    Attributes:
        journal: what the prefix cache gained and lost; any thread may read it.
        num_blocks: over all groups.
        unit: tokens; prefixes are shared in steps that are whole blocks in every group.
        hash_unit: tokens; where a single token fills a block of some group is a multiple of it.
    """

    def __init__(
        self,
        groups: tuple[CacheGroup, ...],
        num_blocks: int,
        prefix_cache: bool = True,
        *,
        first_block: int = 0,
    ) -> None:
        unsupported = [group.name for group in groups if group.kind not in _BLOCKWISE]
        if unsupported:
            raise NotImplementedError(f"cache groups {unsupported} are not made of blocks of tokens")
        self._groups = groups
        # Only the first group is told of: a prefix is cached in all groups or of no use.
        self.journal = BlockJournal(num_blocks)
        self._pools = tuple(
            BlockPool(num_blocks, None if index else self.journal, first_block=first_block)
            for index in range(len(groups))
        )
        self._prefix_cache = prefix_cache
        self._step = 0
        self._tables: dict[str, _Table] = {}
        self._chains: dict[str, list[HashChain]] = {}
        self.num_blocks = num_blocks * len(groups)
        self.unit = math.lcm(*(group.block_size for group in groups))
        self.hash_unit = math.gcd(*(group.block_size for group in groups))

    @property
    def num_free(self) -> int:
        """Blocks that no table holds, over all groups; those that retire included."""
        return sum(pool.num_free + pool.num_retiring for pool in self._pools)

    def begin_step(self, step: int, rows: Sequence[ScheduledRow]) -> None:
        """A step of these rows goes to the device; `copies` of `grow` before it belong to it."""
        self._step = step
        for index, (group, pool) in enumerate(zip(self._groups, self._pools, strict=True)):
            size = group.block_size
            written: list[int] = []
            for row in rows:
                if row.request.given is not None:
                    continue
                first = row.start // size
                if row.num_tokens == 1:
                    written.append(row.request.block_ids[index][first])
                else:
                    end = (row.start + row.num_tokens - 1) // size + 1
                    written += row.request.block_ids[index][first:end]
            pool.begin_step(step, written)

    def end_step(self, step: int) -> None:
        """A step is over, and so are all before it."""
        for pool in self._pools:
            pool.end_step(step)

    def fits(self, num_slots: int) -> bool:
        """Whether a request of so many tokens fits an empty pool."""
        return all(
            group.num_blocks_for(num_slots) <= pool.num_blocks
            for group, pool in zip(self._groups, self._pools, strict=True)
        )

    def admit(self, request: Request, num_slots: int, leave: int, spare: int) -> None:
        """Give a request blocks for its first `num_slots` tokens, leading ones from the cache.

        Sets block_ids and num_computed_tokens (the cached tokens). A request with `given` blocks takes
        nothing of these pools, and nothing of it is cached here: that is for whoever gave them.

        Args:
            leave: tokens at the end that must not come from the cache; 1 if it is to be computed here.
            spare: blocks of each group that must stay free.
        Raises:
            OutOfBlocksError: too few free blocks; nothing was taken.
        """
        assert request.request_id not in self._tables, f"{request.request_id} is admitted already"
        if request.given is not None:
            request.block_ids = [list(ids) for ids in request.given.block_ids]
            request.num_computed_tokens = request.given.num_computed_tokens
            return
        end = self._cached_until(request, 0, request.num_tokens - leave)
        hits = [self._cached_blocks(request, group, 0, end) for group in range(len(self._groups))]
        needs = []
        for group, pool, cached in zip(self._groups, self._pools, hits, strict=True):
            need = group.num_blocks_for(num_slots) - len(cached)
            revived = sum(pool.is_free(block_id) for block_id in cached)
            if need + revived + spare > pool.num_free:
                raise OutOfBlocksError(
                    f"{need + revived} KV blocks and {spare} spare wanted, "
                    f"{pool.num_free} of {pool.num_blocks} free"
                )
            needs.append(need)
        block_ids = []
        for pool, cached, need in zip(self._pools, hits, needs, strict=True):
            # Pin before allocating, or the allocation might evict what was just found.
            for block_id in cached:
                pool.share(block_id)
            block_ids.append(cached + pool.allocate(need))
        self._tables[request.request_id] = _Table(block_ids, [len(cached) for cached in hits])
        request.block_ids = block_ids
        request.num_computed_tokens = end

    def adopt(self, request: Request, leave: int) -> int:
        """Replace blocks that are still to be computed by cached ones that appeared since admission.

        So of two prompts with a common prefix that came together only one computes it.

        Returns:
            tokens gained; num_computed_tokens has grown by as many.
        """
        start = request.num_computed_tokens
        if start % self.unit or request.given is not None:
            return 0
        end = self._cached_until(request, start, request.num_tokens - leave)
        if end == start:
            return 0
        table = self._tables[request.request_id]
        for index, pool in enumerate(self._pools):
            first = start // self._groups[index].block_size
            for offset, block_id in enumerate(self._cached_blocks(request, index, start, end)):
                pool.share(block_id)
                pool.release(table.block_ids[index][first + offset])
                table.block_ids[index][first + offset] = block_id
        request.num_computed_tokens = end
        return end - start

    def grow(self, request: Request, num_slots: int) -> list[BlockCopy]:
        """Make the slots from num_computed_tokens up to `num_slots` writable; sets num_writable_slots.

        Returns:
            copies for the next step to make before it writes: a partly filled block that others hold too.
        Raises:
            OutOfBlocksError: too few free blocks; nothing was taken.
        """
        if request.given is not None:
            return []
        block_ids = self._tables[request.request_id].block_ids
        start = request.num_computed_tokens
        wanted = self._wanted(request, num_slots)
        for pool, (need, shared) in zip(self._pools, wanted, strict=True):
            if need + shared > pool.num_free:
                raise OutOfBlocksError(
                    f"{need + shared} KV blocks wanted, {pool.num_free} of {pool.num_blocks} free"
                )
        copies = []
        for index, (pool, (need, shared)) in enumerate(zip(self._pools, wanted, strict=True)):
            block_ids[index] += pool.allocate(need)
            if shared:
                position = start // self._groups[index].block_size
                src, dst = block_ids[index][position], pool.allocate(1)[0]
                block_ids[index][position] = dst
                pool.pin(src, self._step + 1)
                pool.release(src)
                copies.append(BlockCopy(index, src, dst))
        request.num_writable_slots = min(
            len(ids) * group.block_size for group, ids in zip(self._groups, block_ids, strict=True)
        )
        return copies

    def grows_later(self, request: Request, num_slots: int) -> bool:
        """Whether `grow` has the blocks it wants once the steps under way are over."""
        return all(
            need + shared <= pool.num_free + pool.num_retiring
            for pool, (need, shared) in zip(self._pools, self._wanted(request, num_slots), strict=True)
        )

    def _wanted(self, request: Request, num_slots: int) -> list[tuple[int, bool]]:
        """Of each group: blocks to add, and whether the block of the first slot is shared."""
        start = request.num_computed_tokens
        wanted = []
        for group, pool, ids in zip(self._groups, self._pools, request.block_ids, strict=True):
            shared = start % group.block_size != 0 and pool.ref_count(ids[start // group.block_size]) > 1
            wanted.append((max(0, group.num_blocks_for(num_slots) - len(ids)), shared))
        return wanted

    def register(self, request: Request, num_tokens: int) -> None:
        """Offer the blocks that the first `num_tokens` tokens fill to the prefix cache.

        Their KV is complete: the steps that wrote it are over.
        """
        if not self._prefix_cache or request.given is not None:
            return
        table = self._tables[request.request_id]
        for index, (group, pool) in enumerate(zip(self._groups, self._pools, strict=True)):
            num_full = num_tokens // group.block_size
            for position in range(table.num_registered[index], num_full):
                block_id = table.block_ids[index][position]
                # Adopted and inherited blocks are cached already.
                if not pool.is_cached(block_id):
                    pool.register(block_id, self._chain(request, index).get(request.token_ids, position))
            table.num_registered[index] = max(table.num_registered[index], num_full)

    def fork(self, parent: Request, child: Request) -> None:
        """Let a child share the blocks of its num_computed_tokens; its parent has computed as many."""
        source = self._tables[parent.request_id]
        block_ids = []
        for group, pool, ids in zip(self._groups, self._pools, source.block_ids, strict=True):
            shared = ids[: group.num_blocks_for(child.num_computed_tokens)]
            for block_id in shared:
                pool.share(block_id)
            block_ids.append(shared)
        self._tables[child.request_id] = _Table(block_ids, list(source.num_registered))
        child.block_ids = block_ids
        parent.num_writable_slots = 0

    def free(self, request: Request) -> None:
        """Give back all blocks of an admitted request; full ones stay cached until they are evicted."""
        if request.given is None:
            table = self._tables.pop(request.request_id)
            for pool, ids in zip(self._pools, table.block_ids, strict=True):
                # The tail first: a prefix is of use without it, not the other way round.
                for block_id in reversed(ids):
                    pool.release(block_id)
        request.block_ids = []
        request.num_computed_tokens = request.num_writable_slots = 0

    def forget(self, request: Request) -> None:
        """Drop the hashes of a request that has ended."""
        self._chains.pop(request.request_id, None)

    def _cached_until(self, request: Request, start: int, limit: int) -> int:
        """Return where, at most at `limit`, the tokens cached in all groups from `start` end."""
        end = limit - limit % self.unit
        # A token whose log-probability is wanted has to be computed.
        if not self._prefix_cache or request.sampling.prompt_logprobs is not None:
            return start
        for index, group in enumerate(self._groups):
            chain, pool = self._chain(request, index), self._pools[index]
            for position in range(start // group.block_size, end // group.block_size):
                if pool.lookup(chain.get(request.token_ids, position)) is None:
                    end = position * group.block_size
                    break
        return max(start, end - end % self.unit)

    def _cached_blocks(self, request: Request, index: int, start: int, end: int) -> list[int]:
        """Return the cached blocks of tokens[start:end], which `_cached_until` found."""
        chain, pool, size = self._chain(request, index), self._pools[index], self._groups[index].block_size
        found = [
            pool.lookup(chain.get(request.token_ids, position))
            for position in range(start // size, end // size)
        ]
        return [block_id for block_id in found if block_id is not None]

    def _chain(self, request: Request, index: int) -> HashChain:
        chains = self._chains.get(request.request_id)
        if chains is None:
            chains = [HashChain(request.cache_salt, group.block_size) for group in self._groups]
            self._chains[request.request_id] = chains
        return chains[index]

    def check_invariants(self) -> None:
        """Raise AssertionError unless every ref count equals the number of tables that hold the block."""
        for index, pool in enumerate(self._pools):
            pool.check_invariants()
            held = Counter(b for table in self._tables.values() for b in table.block_ids[index])
            for block_id in pool.block_ids:
                assert pool.ref_count(block_id) == held[block_id], (
                    f"block {block_id} has ref count {pool.ref_count(block_id)}, "
                    f"{held[block_id]} tables hold it"
                )
        for request_id, table in self._tables.items():
            for ids in table.block_ids:
                assert len(set(ids)) == len(ids), f"{request_id} holds a block twice"
