"""Counter-based random numbers: one for each (seed, position, token id), in any order, on any device.

Generator: Philox4x32-10. What a CUDA kernel must do to draw the same:

    key      k0 = seed & 0xffffffff          k1 = seed >> 32
    counter  c0 = token_id >> 2              c1 = position (index of the drawn token in token_ids)
             c2 = stream (0: the token race)  c3 = 0
    words    (w0, w1, w2, w3) = philox4x32_10(counter, key);  w = w[token_id & 3]
    uniform  v = (w + 0.5) * 2^-32, in (0, 1); a float32 implementation takes min(v, 1 - 2^-24)
    Gumbel   g = -log(-log1p(-v))

and the drawn token is the one with the largest  logit / temperature + g  among those
that truncation left; on a tie the smallest id. This is the exponential race
argmin(E / p), E = -log1p(-v), in logarithms: it needs no normalisation, sort or prefix
sum, so a token's chance does not depend on how the vocabulary is split over threads.
The winner has a small E, where v keeps its full resolution of 2^-33: that is why it
is log1p(-v) and not log(v), which near 1 has only 2^-24 in float32.

The scores here are float64. A float32 kernel can differ only where the two best
scores agree to about 1e-6.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox);
Maddison et al. 2014, "A* sampling" (Gumbel-max).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
"""32-bit words in 64-bit elements, so that a product keeps its high half."""

TOKEN_RACE = 0

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS = 10


def philox4x32(counter: tuple[Words, Words, Words, Words], k0: Words, k1: Words) -> Words:
    """Encrypt counters.

    Args:
        counter: four arrays uint64[n] with values below 2^32.
        k0: uint64[n] or uint64[1], below 2^32. k1: the same.
    Returns:
        uint64[n, 4], values below 2^32.
    """
    c0, c1, c2, c3 = (word.copy() for word in counter)
    product0, product1 = np.empty_like(c0), np.empty_like(c0)
    for _ in range(_ROUNDS):
        np.multiply(c0, _MULTIPLIER_0, out=product0)
        np.multiply(c2, _MULTIPLIER_1, out=product1)
        np.right_shift(product1, _HALF, out=c0)
        c0 ^= c1
        c0 ^= k0
        np.right_shift(product0, _HALF, out=c2)
        c2 ^= c3
        c2 ^= k1
        np.bitwise_and(product1, _MASK, out=c1)
        np.bitwise_and(product0, _MASK, out=c3)
        k0 = (k0 + _WEYL_0) & _MASK
        k1 = (k1 + _WEYL_1) & _MASK
    return np.stack((c0, c1, c2, c3), axis=1)


def gumbel_all(seed: int, position: int, vocab_size: int) -> npt.NDArray[np.float64]:
    """Return g of every token id, float64[vocab_size]."""
    blocks = np.arange((vocab_size + 3) // 4, dtype=np.uint64)
    k0, k1 = _key(np.array([seed], dtype=np.uint64))
    words = philox4x32(_counter(blocks, np.full_like(blocks, position)), k0, k1)
    return _gumbel(words.reshape(-1)[:vocab_size])


def gumbel_at(seeds: Words, positions: Words, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return g of some tokens, of several requests at once.

    Args:
        seeds: uint64[n]. positions: uint64[n]. token_ids: int64[n].
    Returns:
        float64[n].
    """
    k0, k1 = _key(seeds)
    words = philox4x32(_counter((token_ids >> 2).astype(np.uint64), positions), k0, k1)
    return _gumbel(words[np.arange(len(token_ids)), token_ids & 3])


def _key(seeds: Words) -> tuple[Words, Words]:
    return seeds & _MASK, seeds >> _HALF


def _counter(blocks: Words, positions: Words) -> tuple[Words, Words, Words, Words]:
    zeros = np.zeros_like(blocks)
    return blocks, positions, np.full_like(blocks, TOKEN_RACE), zeros


def _gumbel(words: Words) -> npt.NDArray[np.float64]:
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
    return -np.log(-np.log1p(-uniform))
