"""The race of one row: the token with the largest scaled logit + Gumbel noise wins.

Logarithms for 50k tokens would cost more than the random numbers. Since
g <= -log(v), a token can beat a known score s only if v <= exp(z - s). So where all
tokens take part, the most likely one is scored first, the others are sifted by that
bound on their 32-bit words alone, and only the few that pass are scored in float64.
The winner is the same.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from engine.sampler.jit import njit
from engine.sampler.philox import fill_words, gumbel

Row = npt.NDArray[np.float32]

# Covers the rounding of the float32 bound, which must let every possible winner through.
_SLACK = 1.001
_RUN = 64


def run_race(scaled: Row, best: int, floor: float, seed: int, position: int) -> int:
    """Return the winner among the tokens that are at least `floor`; on a tie the smallest id.

    Args:
        scaled: float32[V], logits over temperature.
        best: index of the largest.
        seed: 64 bits. position: 32 bits; philox.py says how they make the noise.
    """
    k0, k1, row = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32), np.uint32(position)
    if floor == -math.inf:
        passing = _sift(scaled, best, k0, k1, row)
    else:
        passing = np.flatnonzero(scaled >= np.float32(floor))
    return _finish(k0, k1, row, scaled, passing)


def _sift(scaled: Row, best: int, k0: np.uint32, k1: np.uint32, position: np.uint32) -> npt.NDArray[np.int64]:
    """Return the ids of tokens that may win, in any order; `best` is one of them."""
    num_blocks = -(-len(scaled) // (4 * _RUN)) * _RUN
    # As philox.py numbers the words: token 4 i + lane stands at [lane, i]. A token passes if its
    # word <= bound.
    bounds = np.full((4, num_blocks), -np.inf, dtype=np.float32)
    for lane in range(4):
        column = scaled[lane::4]
        np.subtract(column, scaled[best], out=bounds[lane, : len(column)])
    np.exp(bounds, out=bounds)
    bounds *= np.float32(math.exp(-gumbel(k0, k1, position, np.uint32(best))) * 2.0**32 * _SLACK)
    words = np.empty((4, num_blocks), dtype=np.uint32)
    fill_words(k0, k1, position, words)
    passing = np.empty(len(scaled), dtype=np.int64)
    return passing[: _select(words, bounds, passing)]


@njit("int64(uint32[:, ::1], float32[:, ::1], int64[::1])")
def _select(words: npt.NDArray[np.uint32], bounds: Row, passing: npt.NDArray[np.int64]) -> int:
    """Write the ids whose word is within its bound; return how many. A run with none costs little."""
    count = 0
    for lane in range(4):
        lane_words, lane_bounds = words[lane], bounds[lane]
        for start in range(0, len(lane_words), _RUN):
            num_passing = 0
            for block in range(start, start + _RUN):
                num_passing += np.float32(lane_words[block]) <= lane_bounds[block]
            if num_passing:
                for block in range(start, start + _RUN):
                    token_id = 4 * block + lane
                    if np.float32(lane_words[block]) <= lane_bounds[block] and token_id < len(passing):
                        passing[count] = token_id
                        count += 1
    return count


@njit("int64(uint32, uint32, uint32, float32[::1], int64[::1])")
def _finish(
    k0: np.uint32, k1: np.uint32, position: np.uint32, scaled: Row, passing: npt.NDArray[np.int64]
) -> int:
    """Score tokens in float64."""
    winner, largest = -1, -math.inf
    for token_id in passing:
        score = float(scaled[token_id]) + gumbel(k0, k1, position, np.uint32(token_id))
        if score > largest or (score == largest and token_id < winner):
            winner, largest = token_id, score
    return winner
