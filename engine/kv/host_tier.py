"""Host memory behind the pools: blocks of requests that were swapped out, and evicted prefixes.

A *slot* holds one block of a group. The first slots of a group are for swapping, the rest
is a cache. Both are block pools themselves: what a step under way copies stays out of reach
until the step is over, and cached slots go least recently used first.

    preemption   blocks of the victim ──save──► swap slots ──load──► new blocks when it comes back
    write-back   blocks next to be evicted ──save──► cache slots ──load──► a new block on a hit

Blocks are written back before their turn to be evicted comes, so that whoever needs a block
need not wait for a copy; a new request that needs more than are ready waits until they are.
A request that decodes does not: what it takes that was not copied yet is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from engine.errors import InvalidRequestError
from engine.kv.block_events import BlockJournal
from engine.kv.block_pool import BlockPool
from engine.kv.layout import CacheGroup
from engine.request import Request
from engine.step import SwapIn, SwapOut

# Blocks of a group that one step writes back at most: the copies should hide behind the step.
MAX_WRITE_BACK = 32


@dataclass(frozen=True, slots=True)
class HostSlots:
    """Sizes of a host tier.

    Attributes:
        swap: slots of each group for requests that were swapped out; 0: they are recomputed.
        cache: slots of each group for evicted prefixes; 0: they are lost.
    """

    swap: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        """Slots of each group."""
        return self.swap + self.cache


NO_HOST_SLOTS = HostSlots()


def slots_in(swap_bytes: int, cache_bytes: int, groups: Sequence[CacheGroup]) -> HostSlots:
    """Slots that fit so many bytes, as many in each group.

    Raises:
        InvalidRequestError: bytes are wanted, and hold not even one.
    """
    slot_bytes = sum(group.block_bytes for group in groups)
    for name, num_bytes in (("swap_bytes", swap_bytes), ("host_cache_bytes", cache_bytes)):
        if 0 < num_bytes < slot_bytes:
            raise InvalidRequestError(name, f"{num_bytes} holds no block of {slot_bytes} bytes")
    return HostSlots(swap_bytes // slot_bytes, cache_bytes // slot_bytes)


@dataclass(frozen=True, slots=True)
class Saved:
    """A request that was swapped out.

    Attributes:
        num_tokens: leading tokens whose KV is saved.
        slots: one list a group, in order of position.
    """

    num_tokens: int
    slots: list[list[int]]


@dataclass(slots=True)
class _Moves:
    """What one step copies."""

    outs: list[SwapOut] = field(default_factory=list)
    ins: list[SwapIn] = field(default_factory=list)
    saved_ids: list[str] = field(default_factory=list)
    loaded: list[Request] = field(default_factory=list)


class TierJournal(BlockJournal):
    """A hash is stored as long as any of the tiers that are told apart here has it."""

    def __init__(self, max_evicted: int) -> None:
        super().__init__(max_evicted)
        self._num_tiers: dict[bytes, int] = {}

    def stored(self, block_hash: bytes) -> None:
        """Note that one more tier has a hash."""
        tiers = self._num_tiers[block_hash] = self._num_tiers.get(block_hash, 0) + 1
        if tiers == 1:
            super().stored(block_hash)

    def evicted(self, block_hash: bytes) -> None:
        """Note that one tier less has it."""
        tiers = self._num_tiers.pop(block_hash) - 1
        if tiers:
            self._num_tiers[block_hash] = tiers
        else:
            super().evicted(block_hash)


class HostTier:
    """Slots of all groups and what the next step is to copy. Not thread-safe.

    Attributes:
        num_saved_blocks: copied to the host since start.
        num_loaded_blocks: copied back since start.
    """

    def __init__(self, num_groups: int, slots: HostSlots, journal: BlockJournal) -> None:
        self._swap = tuple(BlockPool(slots.swap) for _ in range(num_groups))
        self.caches = tuple(
            BlockPool(slots.cache, None if index else journal, first_block=slots.swap)
            for index in range(num_groups)
        )
        self._saved: dict[str, Saved] = {}
        self._next = _Moves()
        self._under_way: dict[int, _Moves] = {}
        self.num_saved_blocks = 0
        self.num_loaded_blocks = 0

    @property
    def has_moves(self) -> bool:
        """Whether the next step has anything to copy."""
        return bool(self._next.outs or self._next.ins)

    # Swapped requests.

    def save(self, request: Request, block_ids: Sequence[Sequence[int]]) -> bool:
        """Let the next step save the blocks of a request's computed tokens; all or nothing."""
        if any(len(ids) > pool.num_free for ids, pool in zip(block_ids, self._swap, strict=True)):
            return False
        slots = []
        for group, (ids, pool) in enumerate(zip(block_ids, self._swap, strict=True)):
            slots.append(pool.allocate(len(ids)))
            self._out(group, ids, slots[-1])
        self._saved[request.request_id] = Saved(request.num_computed_tokens, slots)
        self._next.saved_ids.append(request.request_id)
        return True

    @property
    def saved_ids(self) -> Collection[str]:
        """Requests that are swapped out."""
        return self._saved.keys()

    def saved(self, request: Request) -> Saved | None:
        """Return what is saved of a request, if it was swapped out."""
        return self._saved.get(request.request_id)

    def discard(self, request_id: str) -> None:
        """Let go of what is saved of a request, if anything is."""
        saved = self._saved.pop(request_id, None)
        if saved is not None:
            for pool, slots in zip(self._swap, saved.slots, strict=True):
                for slot in slots:
                    pool.release(slot)

    # Cached prefixes.

    def write_back(self, group: int, pool: BlockPool, wanted: int, step: int) -> None:
        """Let step `step` copy blocks whose turn to be evicted comes next.

        Args:
            pool: of the group.
            wanted: so many blocks should be there to be had without loss.
        """
        cache = self.caches[group]
        count = min(wanted - pool.num_lossless, MAX_WRITE_BACK, cache.num_free)
        for block_id, block_hash in pool.clean(count, step) if count > 0 else ():
            (slot,) = cache.allocate(1)
            cache.register(slot, block_hash)
            cache.pin(slot, step)
            cache.release(slot)
            self._out(group, (block_id,), (slot,))

    # Both.

    def load(
        self, request: Request, group: int, slots: Sequence[int], block_ids: Sequence[int], step: int
    ) -> None:
        """Let step `step`, the next one, copy slots into blocks of a request."""
        for slot, block_id in zip(slots, block_ids, strict=True):
            pool = self._pool_of(group, slot)
            pool.share(slot)
            pool.pin(slot, step)
            pool.release(slot)
            self._next.ins.append(SwapIn(group, slot, block_id))
        self._next.loaded.append(request)
        self.num_loaded_blocks += len(slots)

    def begin_step(self, step: int) -> tuple[tuple[SwapOut, ...], tuple[SwapIn, ...]]:
        """The next step goes to the device: return what it copies."""
        moves, self._next = self._next, _Moves()
        self._under_way[step] = moves
        for group, pools in enumerate(zip(self._swap, self.caches, strict=True)):
            for pool in pools:
                pool.begin_step(
                    step, [o.slot for o in moves.outs if o.group == group and o.slot in pool.block_ids]
                )
        return tuple(moves.outs), tuple(moves.ins)

    def end_step(self, step: int) -> None:
        """A step is over, and so are all before it."""
        self._under_way.pop(step, None)
        for pool in (*self._swap, *self.caches):
            pool.end_step(step)

    def abandon_step(self, step: int) -> list[Request]:
        """A step did not make its copies: nothing that it or a later one saved or loaded counts.

        Returns:
            requests whose blocks do not hold what was to be loaded.
        """
        spoilt: list[Request] = []
        for moves in [moves for number, moves in self._under_way.items() if number >= step]:
            for request_id in moves.saved_ids:
                self.discard(request_id)
            for out in moves.outs:
                if out.slot in self.caches[out.group].block_ids:
                    self.caches[out.group].unregister(out.slot)
            spoilt += moves.loaded
        return spoilt

    def _out(self, group: int, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        self._next.outs += [
            SwapOut(group, block_id, slot) for block_id, slot in zip(block_ids, slots, strict=True)
        ]
        self.num_saved_blocks += len(slots)

    def _pool_of(self, group: int, slot: int) -> BlockPool:
        return self._swap[group] if slot in self._swap[group].block_ids else self.caches[group]

    def check_invariants(self) -> None:
        """Assert that slots are held by swapped requests alone."""
        for group, pool in enumerate(self._swap):
            pool.check_invariants()
            held = {slot for saved in self._saved.values() for slot in saved.slots[group]}
            assert {slot for slot in pool.block_ids if pool.ref_count(slot)} == held, "swap slots are lost"
        for pool in self.caches:
            pool.check_invariants()
            assert not any(pool.ref_count(slot) for slot in pool.block_ids), "cache slots are lost"
