"""Chained hashes of full blocks: the keys of the prefix cache.

    h[-1] = blake2b-128(salt)          h[i] = blake2b-128(h[i-1] || tokens of block i, uint32 little-endian)

So h[i] names the salt and every token up to the end of block i, and two equal
hashes mean equal KV. A cryptographic hash, because a tenant who could find a
second preimage would read another's KV; 128 bits put that at 2^128 work.
hashlib's blake2b costs about a microsecond a block and needs no package.

This is the one definition: what a worker reports as stored is what a gateway looks up.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

HASH_BYTES = 16
_PERSON = b"baton-kv-1"


class HashChain:
    """Hashes of the leading full blocks of one token sequence; grows as asked, never changes."""

    def __init__(self, salt: str, block_size: int) -> None:
        self._block_size = block_size
        self._pack = struct.Struct(f"<{block_size}I").pack
        self._root = blake2b(salt.encode(), digest_size=HASH_BYTES, person=_PERSON).digest()
        self._hashes: list[bytes] = []

    def get(self, token_ids: Sequence[int], index: int) -> bytes:
        """Return the hash of block `index`; its tokens must all be in `token_ids`."""
        hashes = self._hashes
        while len(hashes) <= index:
            start = len(hashes) * self._block_size
            parent = hashes[-1] if hashes else self._root
            block = self._pack(*token_ids[start : start + self._block_size])
            hashes.append(blake2b(parent + block, digest_size=HASH_BYTES, person=_PERSON).digest())
        return hashes[index]
