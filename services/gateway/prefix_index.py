"""Which leading blocks of a prompt each worker holds, as far as this gateway knows.

A worker tells in its beats what its prefix cache gained and lost. Between beats a
prompt that was just sent there counts too, for a while: else the prompts of one
moment that share a prefix would be spread, and each worker would compute it anew.
All of it is a hint: a wrong one costs compute, never an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from baton.v1.registry_pb2 import BlockEvents
from kvhash.chain import HASH_BYTES, HashChain

# At about 150 bytes a block, 40 MB a worker; a worker that has more is known in part.
MAX_KNOWN_BLOCKS = 1 << 18
# Hashing a block takes a microsecond or two of the event loop; what follows is not looked at.
MAX_PROMPT_BLOCKS = 2048
# A prompt that is not computed within this time after it was sent is no longer expected.
EXPECT_S = 10.0


class KnownBlocks:
    """What is known of one worker's prefix cache.

    Args:
        num_blocks: size of its pool; it cannot hold more.
    Attributes:
        seq: how far its events have been taken.
    """

    def __init__(self, num_blocks: int) -> None:
        self._limit = min(num_blocks, MAX_KNOWN_BLOCKS)
        self._stored: set[bytes] = set()
        # Hash -> when it is given up, soonest first.
        self._expected: dict[bytes, float] = {}
        self.seq = 0

    def __len__(self) -> int:
        return len(self._stored | self._expected.keys())

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._stored or block_hash in self._expected

    def apply(self, events: BlockEvents) -> int:
        """Take a worker's events, unless some before them are missing; returns the new `seq`."""
        if events.reset:
            self._stored.clear()
        elif events.after_seq != self.seq:
            return self.seq
        self._stored.difference_update(events.evicted)
        for block_hash in events.evicted:
            self._expected.pop(block_hash, None)
        for block_hash in events.stored:
            self._expected.pop(block_hash, None)
            if len(self._stored) < self._limit and len(block_hash) == HASH_BYTES:
                self._stored.add(block_hash)
        self.seq = events.until_seq
        return self.seq

    def expect(self, hashes: Iterable[bytes], now: float) -> None:
        """Count a prompt's blocks, which were sent there, as held for EXPECT_S seconds from `now`."""
        for block_hash in hashes:
            if block_hash not in self._stored:
                self._expected.pop(block_hash, None)
                self._expected[block_hash] = now + EXPECT_S
        self.expire(now)

    def expire(self, now: float) -> None:
        """Give up what was expected too long ago, and what exceeds the pool."""
        while self._expected:
            block_hash, until = next(iter(self._expected.items()))
            if until > now and len(self._expected) <= self._limit:
                break
            del self._expected[block_hash]


class PromptBlocks:
    """Names of a prompt's full blocks, hashed once, when they are first asked for."""

    def __init__(self, token_ids: Sequence[int], cache_salt: str) -> None:
        self._token_ids = token_ids
        self._cache_salt = cache_salt
        self._hashes: dict[int, list[bytes]] = {}

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return len(self._token_ids)

    def hashes(self, block_size: int) -> list[bytes]:
        """Return the names, leading blocks first, at most MAX_PROMPT_BLOCKS."""
        hashes = self._hashes.get(block_size)
        if hashes is None:
            chain = HashChain(self._cache_salt, block_size)
            count = min(len(self._token_ids) // block_size, MAX_PROMPT_BLOCKS)
            hashes = [chain.get(self._token_ids, index) for index in range(count)]
            self._hashes[block_size] = hashes
        return hashes


def leading_blocks(known: Sequence[KnownBlocks], hashes: Sequence[bytes]) -> list[int]:
    """Return, for each worker, how many of the leading blocks it holds without a gap."""
    counts = [0] * len(known)
    holders = list(range(len(known)))
    for block_hash in hashes:
        holders = [index for index in holders if block_hash in known[index]]
        if not holders:
            break
        for index in holders:
            counts[index] += 1
    return counts
