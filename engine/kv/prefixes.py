"""What of a request's tokens is cached, on the device or on the host."""

from __future__ import annotations

import math
from typing import NamedTuple

from engine.kv.block_pool import BlockPool
from engine.kv.host_tier import Saved
from engine.kv.layout import CacheGroup
from engine.request import Request
from kvhash.chain import HashChain


class Source(NamedTuple):
    """Where the KV of a block is: on the device, in a slot of the host, or nowhere."""

    block_id: int | None
    slot: int | None


class Prefixes:
    """Looks up leading blocks of requests by their hashes. Modifies no pool.

    Attributes:
        unit: tokens; prefixes are shared in steps that are whole blocks in every group.
    """

    def __init__(
        self,
        groups: tuple[CacheGroup, ...],
        pools: tuple[BlockPool, ...],
        caches: tuple[BlockPool, ...],
        enabled: bool,
        prompts_only: bool = False,
    ) -> None:
        """Follow `pools`, and `caches` of the host behind them; if not `enabled` nothing is found.

        Args:
            prompts_only: blocks that hold a token of an answer are nobody else's.
        """
        self._groups = groups
        self._pools = pools
        self._caches = caches
        self._enabled = enabled
        self._prompts_only = prompts_only
        self._chains: dict[str, list[HashChain]] = {}
        self.unit = math.lcm(*(group.block_size for group in groups))

    def block_hash(self, request: Request, index: int, position: int) -> bytes:
        """Return the hash of a block, all of whose tokens are known."""
        return self._chain(request, index).get(request.token_ids, position)

    def shareable(self, request: Request, num_tokens: int) -> int:
        """How many of a request's first tokens may be in blocks that others use too."""
        return min(num_tokens, request.num_prompt_tokens) if self._prompts_only else num_tokens

    def forget(self, request: Request) -> None:
        """Drop the hashes of a request."""
        self._chains.pop(request.request_id, None)

    def sources(self, request: Request, index: int, end: int, saved: Saved | None) -> list[Source]:
        """Where the blocks of the first `end` tokens are."""
        group, pool, cache = self._groups[index], self._pools[index], self._caches[index]
        chain = self._chain(request, index)
        shareable = self.shareable(request, end) if self._enabled else 0
        sources = []
        for position in range(group.num_blocks_for(end)):
            block_id = slot = None
            if (position + 1) * group.block_size <= shareable:
                block_hash = chain.get(request.token_ids, position)
                block_id, slot = pool.lookup(block_hash), cache.lookup(block_hash)
            if saved is not None:
                slot = saved.slots[index][position]
            sources.append(Source(block_id, slot))
        return sources

    def cached_until(self, request: Request, start: int, limit: int, host: bool) -> int:
        """Return where, at most at `limit`, the tokens cached in all groups from `start` end.

        Args:
            host: whether the host's cache counts.
        """
        limit = self.shareable(request, limit)
        end = limit - limit % self.unit
        # A token whose log-probability is wanted has to be computed.
        if not self._enabled or request.sampling.prompt_logprobs is not None:
            return start
        for index, group in enumerate(self._groups):
            chain, pool, cache = self._chain(request, index), self._pools[index], self._caches[index]
            for position in range(start // group.block_size, end // group.block_size):
                block_hash = chain.get(request.token_ids, position)
                if pool.lookup(block_hash) is None and not (host and cache.lookup(block_hash) is not None):
                    end = position * group.block_size
                    break
        return max(start, end - end % self.unit)

    def cached_blocks(self, request: Request, index: int, start: int, end: int) -> list[int]:
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
