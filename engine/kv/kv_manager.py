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
from engine.kv.arrivals import Arrivals
from engine.kv.block_pool import BlockPool
from engine.kv.host_tier import NO_HOST_SLOTS, HostSlots, HostTier, TierJournal
from engine.kv.layout import CacheGroup, CacheKind
from engine.kv.prefixes import Prefixes, Source
from engine.request import Request
from engine.step import BlockCopy, ScheduledRow, SwapIn, SwapOut

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
        prompts_only: bool = False,
        first_block: int = 0,
        host_slots: HostSlots = NO_HOST_SLOTS,
    ) -> None:
        unsupported = [group.name for group in groups if group.kind not in _BLOCKWISE]
        if unsupported:
            raise NotImplementedError(f"cache groups {unsupported} are not made of blocks of tokens")
        self._groups = groups
        # Only the first group is told of: a prefix is cached in all groups or of no use.
        self.journal = TierJournal(num_blocks + host_slots.cache)
        self._host = HostTier(len(groups), host_slots, self.journal)
        self._pools = tuple(
            BlockPool(num_blocks, None if index else self.journal, first_block=first_block, below=cache)
            for index, cache in enumerate(self._host.caches)
        )
        # With a cache on the host: blocks of each group that should be there to be had without loss.
        self._reserve = max(1, num_blocks // 8)
        # More of them, that a request waits for since the last `write_back`; 0: none does.
        self._wanted_lossless = 0
        self._arrivals = Arrivals(groups)
        self._prefix_cache = prefix_cache
        self._prefixes = Prefixes(groups, self._pools, self._host.caches, prefix_cache, prompts_only)
        self._step = 0
        self._tables: dict[str, _Table] = {}
        self.num_blocks = num_blocks * len(groups)
        self.unit = self._prefixes.unit
        self.hash_unit = math.gcd(*(group.block_size for group in groups))

    @property
    def num_free(self) -> int:
        """Blocks that no table holds, over all groups; those that retire included."""
        return sum(pool.num_free + pool.num_retiring for pool in self._pools)

    def begin_step(
        self, step: int, rows: Sequence[ScheduledRow]
    ) -> tuple[tuple[SwapOut, ...], tuple[SwapIn, ...]]:
        """A step of these rows goes to the device; what `grow`, `swap_out` and `admit` made belongs to it.

        Returns:
            copies to the host and back, which the step makes before anything else.
        """
        self._step = step
        outs, ins = self._host.begin_step(step)
        for index, (group, pool) in enumerate(zip(self._groups, self._pools, strict=True)):
            size = group.block_size
            written = [swap.block_id for swap in ins if swap.group == index]
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
        return outs, ins

    def end_step(self, step: int) -> None:
        """A step is over, and so are all before it."""
        # First the host: what it holds decides where freed blocks belong.
        self._host.end_step(step)
        for pool in self._pools:
            pool.end_step(step)
        self._arrivals.end_step(step)

    def abandon_step(self, step: int) -> list[Request]:
        """A step failed; `end_step` follows.

        Returns:
            requests whose blocks do not hold what a step was to load.
        """
        spoilt = self._host.abandon_step(step)
        for group, block_id in self._arrivals.spoilt_by(step):
            self._pools[group].unregister(block_id)
        return spoilt

    @property
    def admission_waits(self) -> bool:
        """Whether a request waits since the last `write_back` for prefixes to be saved."""
        return self._wanted_lossless > 0

    def write_back(self) -> None:
        """Let the next step save prefixes that are to be evicted soon."""
        wanted, self._wanted_lossless = max(self._wanted_lossless, self._reserve), 0
        for group, (pool, cache) in enumerate(zip(self._pools, self._host.caches, strict=True)):
            if cache.num_blocks:
                self._host.write_back(group, pool, wanted, self._step + 1)

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
        saved = self._host.saved(request)
        if saved is None:
            end = self._prefixes.cached_until(request, 0, request.num_tokens - leave, host=True)
        else:
            end = saved.num_tokens
        sources = [self._prefixes.sources(request, index, end, saved) for index in range(len(self._groups))]
        needs = []
        for index, (group, pool, found) in enumerate(zip(self._groups, self._pools, sources, strict=True)):
            hits = [source.block_id for source in found if source.block_id is not None]
            need = group.num_blocks_for(num_slots) - len(hits)
            revived = sum(pool.is_free(block_id) for block_id in hits)
            if need + revived + spare > pool.num_free:
                raise OutOfBlocksError(
                    f"{need + revived} KV blocks and {spare} spare wanted, "
                    f"{pool.num_free} of {pool.num_blocks} free"
                )
            if self._host.caches[index].num_blocks:
                lossless = need + sum(pool.is_clean(block_id) for block_id in hits)
                if lossless > pool.num_lossless:
                    self._wanted_lossless = max(self._wanted_lossless, lossless)
                    raise OutOfBlocksError(f"{lossless} KV blocks wanted, and prefixes must be saved first")
            needs.append(need)
        block_ids = [
            self._fill_table(request, index, found, need)
            for index, (found, need) in enumerate(zip(sources, needs, strict=True))
        ]
        self._host.discard(request.request_id)
        self._tables[request.request_id] = _Table(block_ids, [0] * len(block_ids))
        request.block_ids = block_ids
        request.num_computed_tokens = end

    def _fill_table(self, request: Request, index: int, found: list[Source], need: int) -> list[int]:
        """Take the blocks of a request; those that the host has are loaded by the next step."""
        pool = self._pools[index]
        # Pin before allocating, or the allocation might evict what was just found.
        for source in found:
            if source.block_id is not None:
                pool.share(source.block_id)
        new = pool.allocate(need)
        blank = iter(new)
        table = [next(blank) if source.block_id is None else source.block_id for source in found]
        loads = [
            (source.slot, block_id)
            for source, block_id in zip(found, table, strict=True)
            if source.block_id is None and source.slot is not None
        ]
        if loads:
            slots, block_ids = zip(*loads, strict=True)
            self._host.load(request, index, slots, block_ids, self._step + 1)
            self._arrivals.expect(index, block_ids, self._step + 1)
        return table + list(blank)

    def num_ready_tokens(self, request: Request) -> int:
        """Leading computed tokens that are in their blocks already: no step under way brings them."""
        return self._arrivals.num_ready_tokens(request)

    @property
    def host(self) -> HostTier:
        """The tier behind the pools."""
        return self._host

    def swap_out(self, request: Request) -> bool:
        """Let the next step save a request's blocks to the host, and free them.

        Returns:
            False: the host has no room, and nothing happened.
        """
        held = [
            ids[: group.num_blocks_for(request.num_computed_tokens)]
            for group, ids in zip(self._groups, request.block_ids, strict=True)
        ]
        if request.num_computed_tokens == 0 or not self._host.save(request, held):
            return False
        for pool, ids in zip(self._pools, held, strict=True):
            for block_id in ids:
                pool.pin(block_id, self._step + 1)
        self.free(request)
        return True

    def adopt(self, request: Request, leave: int) -> int:
        """Replace blocks that are still to be computed by cached ones that appeared since admission.

        So of two prompts with a common prefix that came together only one computes it.

        Returns:
            tokens gained; num_computed_tokens has grown by as many.
        """
        start = request.num_computed_tokens
        if start % self.unit or request.given is not None:
            return 0
        end = self._prefixes.cached_until(request, start, request.num_tokens - leave, host=False)
        if end == start:
            return 0
        table = self._tables[request.request_id]
        for index, pool in enumerate(self._pools):
            first = start // self._groups[index].block_size
            for offset, block_id in enumerate(self._prefixes.cached_blocks(request, index, start, end)):
                pool.share(block_id)
                pool.release(table.block_ids[index][first + offset])
                table.block_ids[index][first + offset] = block_id
        request.num_computed_tokens = end
        return end - start

    def names(self, request: Request, start: int, end: int) -> list[bytes]:
        """Return the names under which the cache will have tokens[start:end], one a `unit` that they fill."""
        if not self._prefix_cache or request.given is not None:
            return []
        size = self._groups[0].block_size
        first, last = -(-start // self.unit), self._prefixes.shareable(request, end) // self.unit
        return [
            self._prefixes.block_hash(request, 0, (index + 1) * self.unit // size - 1)
            for index in range(first, last)
        ]

    def adoptable_names(self, request: Request, end: int) -> list[bytes]:
        """Return the names of what `adopt` could give of the tokens from num_computed_tokens to `end`."""
        start = request.num_computed_tokens
        if start % self.unit or request.sampling.prompt_logprobs is not None:
            return []
        return self.names(request, start, min(end, request.num_tokens - 1))

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
        num_tokens = self._prefixes.shareable(request, num_tokens)
        for index, (group, pool) in enumerate(zip(self._groups, self._pools, strict=True)):
            num_full = num_tokens // group.block_size
            for position in range(table.num_registered[index], num_full):
                block_id = table.block_ids[index][position]
                # Adopted and inherited blocks are cached already.
                if not pool.is_cached(block_id):
                    pool.register(block_id, self._prefixes.block_hash(request, index, position))
            table.num_registered[index] = max(table.num_registered[index], num_full)

    def distrust(self, request: Request) -> None:
        """Take a request's blocks out of the prefix cache, the host's too: they may hold nonsense.

        Others that hold them keep them.
        """
        if not self._prefix_cache:
            return
        for index, (group, pool) in enumerate(zip(self._groups, self._pools, strict=True)):
            for position in range(request.num_tokens // group.block_size):
                block_hash = self._prefixes.block_hash(request, index, position)
                for tier in (pool, self._host.caches[index]):
                    block_id = tier.lookup(block_hash)
                    if block_id is not None:
                        tier.unregister(block_id)

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
        """Drop the hashes of a request that has ended, and what the host has saved of it."""
        self._prefixes.forget(request)
        self._host.discard(request.request_id)

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
        self._host.check_invariants()
        for request_id, table in self._tables.items():
            assert request_id not in self._host.saved_ids, f"{request_id} has blocks and is swapped out"
            for ids in table.block_ids:
                assert len(set(ids)) == len(ids), f"{request_id} holds a block twice"
