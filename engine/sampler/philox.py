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

import math

import numpy as np
import numpy.typing as npt

from engine.sampler.jit import njit

TOKEN_RACE = np.uint32(0)
"""The stream of token draws; other uses of a (seed, position) take other streams."""

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_ZERO, _TWO, _LANE, _HALF = np.uint32(0), np.uint32(2), np.uint32(3), np.uint64(32)


@njit("UniTuple(uint32, 4)(uint32, uint32, uint32, uint32, uint32, uint32)", inline=True)
def philox4x32(
    c0: np.uint32, c1: np.uint32, c2: np.uint32, c3: np.uint32, k0: np.uint32, k1: np.uint32
) -> tuple[np.uint32, np.uint32, np.uint32, np.uint32]:
    """Encrypt one counter under a key: ten rounds."""
    for _ in range(10):
        product0 = np.uint64(c0) * _MULTIPLIER_0
        product1 = np.uint64(c2) * _MULTIPLIER_1
        c0, c1 = np.uint32(np.uint32(product1 >> _HALF) ^ c1 ^ k0), np.uint32(product1)
        c2, c3 = np.uint32(np.uint32(product0 >> _HALF) ^ c3 ^ k1), np.uint32(product0)
        k0, k1 = np.uint32(k0 + _WEYL_0), np.uint32(k1 + _WEYL_1)
    return c0, c1, c2, c3


@njit("float64(uint32, uint32, uint32, uint32)")
def gumbel(k0: np.uint32, k1: np.uint32, position: np.uint32, token_id: np.uint32) -> float:
    """Return g of one token."""
    words = philox4x32(np.uint32(token_id >> _TWO), position, TOKEN_RACE, _ZERO, k0, k1)
    word = words[token_id & _LANE]
    return -math.log(-math.log1p(-((float(word) + 0.5) * 2.0**-32)))


@njit("void(uint32, uint32, uint32, uint32[:, ::1])")
def fill_words(k0: np.uint32, k1: np.uint32, position: np.uint32, words: npt.NDArray[np.uint32]) -> None:
    """Write the word of token 4 i + lane to words[lane, i]; so laid out it runs on vectors."""
    lane0, lane1, lane2, lane3 = words[0], words[1], words[2], words[3]
    for block in range(words.shape[1]):
        w0, w1, w2, w3 = philox4x32(np.uint32(block), position, TOKEN_RACE, _ZERO, k0, k1)
        lane0[block] = w0
        lane1[block] = w1
        lane2[block] = w2
        lane3[block] = w3
