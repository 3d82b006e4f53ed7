"""Which leading blocks of a prompt each worker holds, as far as this gateway knows.

A worker tells in its beats what its prefix cache gained and lost. A prompt that was sent
there counts too until it has been computed and reported: else the prompts of one moment
that share a prefix would be spread, and each worker would compute it anew. What a worker
has no room for once it has computed what waits there is not counted: least recently
picked first, as its cache will drop it.
All of it is a hint: a wrong one costs compute, never an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from baton.v1.registry_pb2 import BlockEvents
from kvhash.chain import HASH_BYTES, HashChain

# At about 100 bytes a block, 26 MB a worker; a worker that has more is known in part.
MAX_KNOWN_BLOCKS = 1 << 18
# Hashing a block takes a microsecond or two of the event loop; what follows is not looked at.
MAX_PROMPT_BLOCKS = 2048
# What none of so many beats reports after its last request let go of the worker is no longer expected.
SETTLE_BEATS = 3


class KnownBlocks:
    """What one worker's prefix cache will hold when it has computed what waits there.

    Args:
        num_blocks: size of its pool; it cannot hold more.
    Attributes:
        seq: how far its events have been taken.
    """

    def __init__(self, num_blocks: int) -> None:
        self._limit = min(num_blocks, MAX_KNOWN_BLOCKS)
        # Least recently used first. True: the worker has reported it; False: it is expected.
        self._blocks: dict[bytes, bool] = {}
        # Hash -> requests on the worker that use it.
        self._uses: dict[bytes, int] = {}
        # Expected, but used by no request any more: hash -> beat at which it is given up, soonest first.
        self._settling: dict[bytes, int] = {}
        self._beats = 0
        self.seq = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._blocks

    def apply(self, events: BlockEvents) -> int:
        """Take a worker's events, unless some before them are missing; returns the new `seq`."""
        if events.reset:
            for block_hash in [name for name, is_reported in self._blocks.items() if is_reported]:
                self._lose(block_hash)
        elif events.after_seq != self.seq:
            return self.seq
        for block_hash in events.evicted:
            self._lose(block_hash)
        for block_hash in events.stored:
            if len(block_hash) == HASH_BYTES:
                self._settling.pop(block_hash, None)
                self._blocks[block_hash] = True
        self._trim()
        self.seq = events.until_seq
        return self.seq

    def use(self, hashes: Sequence[bytes]) -> None:
        """Count a prompt's blocks as held and just used: it was sent there."""
        # The tail first, so that a prefix outlives what follows it, as in the cache.
        for block_hash in reversed(hashes):
            self._uses[block_hash] = self._uses.get(block_hash, 0) + 1
            self._settling.pop(block_hash, None)
            self._blocks[block_hash] = self._blocks.pop(block_hash, False)
        self._trim()

    def let_go(self, hashes: Sequence[bytes]) -> None:
        """Take note that a prompt was computed, or never will be; each `use` has one `let_go`."""
        for block_hash in hashes:
            left = self._uses[block_hash] - 1
            if left:
                self._uses[block_hash] = left
                continue
            del self._uses[block_hash]
            if self._blocks.get(block_hash) is False:
                self._settling[block_hash] = self._beats + SETTLE_BEATS

    def on_beat(self) -> None:
        """Give up what should have been reported by now; called after each beat's events."""
        self._beats += 1
        while self._settling:
            block_hash, beat = next(iter(self._settling.items()))
            if beat > self._beats:
                break
            del self._settling[block_hash]
            del self._blocks[block_hash]

    def _lose(self, block_hash: bytes) -> None:
        """Take note that the cache does not hold it now; a request that waits may bring it back."""
        if block_hash not in self._blocks:
            return
        if block_hash in self._uses:
            self._blocks[block_hash] = False
        else:
            del self._blocks[block_hash]
            self._settling.pop(block_hash, None)

    def _trim(self) -> None:
        """Forget what the pool has no room for."""
        while len(self._blocks) > self._limit:
            block_hash = next(iter(self._blocks))
            del self._blocks[block_hash]
            self._settling.pop(block_hash, None)


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
