"""attention_decode: one query token a row, straight from the paged blocks.

The query heads of a KV head are folded, so each key and value is read once. The context is cut into
splits of a fixed size, each with its own running softmax; the splits of a row are merged at the end.
Source: Dao et al. 2023 (Flash-Decoding), Kwon et al. 2023 (paged blocks).
"""

from __future__ import annotations

import numpy as np
from numba import prange

from engine.backends.cpu.arrays import FloatArray, IntArray
from engine.backends.cpu.exponential import exp32
from engine.backends.cpu.jit import device_function, kernel

SPLIT_TOKENS = 256


@device_function
def _attend(
    q: FloatArray,
    keys_values: FloatArray,
    table: IntArray,
    kv_head: int,
    start: int,
    stop: int,
    scale: np.float32,
    partial: FloatArray,
    scores: FloatArray,
) -> None:
    """Attend from q [G, D] to tokens start .. stop - 1; partial [G, D + 2] = sum, max, weight."""
    block_size, head_dim = keys_values.shape[4], keys_values.shape[5]
    group = q.shape[0]
    for token in range(start, stop):
        key = keys_values[table[token // block_size], 0, 0, kv_head, token % block_size]
        for g in range(group):
            score = np.float32(0.0)
            for i in range(head_dim):
                score += q[g, i] * key[i]
            scores[g, token - start] = score * scale
    for g in range(group):
        largest = scores[g, 0]
        for j in range(1, stop - start):
            largest = max(largest, scores[g, j])
        weight = np.float32(0.0)
        for j in range(stop - start):
            scores[g, j] = exp32(scores[g, j] - largest)
            weight += scores[g, j]
        for i in range(head_dim):
            partial[g, i] = np.float32(0.0)
        partial[g, head_dim] = largest
        partial[g, head_dim + 1] = weight
    for token in range(start, stop):
        value = keys_values[table[token // block_size], 0, 1, kv_head, token % block_size]
        for g in range(group):
            probability = scores[g, token - start]
            for i in range(head_dim):
                partial[g, i] += probability * value[i]


@device_function
def _merge(partials: FloatArray, out: FloatArray) -> None:
    """partials [S, G, D + 2] -> out [G * D]."""
    head_dim = partials.shape[2] - 2
    for g in range(partials.shape[1]):
        largest = partials[0, g, head_dim]
        for s in range(1, partials.shape[0]):
            largest = max(largest, partials[s, g, head_dim])
        total = np.float32(0.0)
        for i in range(head_dim):
            out[g * head_dim + i] = np.float32(0.0)
        for s in range(partials.shape[0]):
            factor = exp32(partials[s, g, head_dim] - largest)
            total += factor * partials[s, g, head_dim + 1]
            for i in range(head_dim):
                out[g * head_dim + i] += factor * partials[s, g, i]
        for i in range(head_dim):
            out[g * head_dim + i] /= total


@kernel(
    "void(f4[:, :, ::1], f4[:, :, :, :, :, ::1], i8, i4[:, ::1], i4[::1], i4[::1], i4[:, ::1], f4,"
    " f4[:, :, :, :, ::1], f4[:, ::1])"
)
def attention_decode(
    q: FloatArray,
    blocks: FloatArray,
    layer: int,
    tables: IntArray,
    first_tokens: IntArray,
    context_lens: IntArray,
    work: IntArray,
    scale: np.float32,
    partials: FloatArray,
    out: FloatArray,
) -> None:
    """Attend from B queries.

    q [B, H, D]; tables [B, max_blocks]; row b sees tokens
    first_tokens[b] .. context_lens[b] - 1; work [W, 2] lists (row, split), all splits of a row;
    partials [B, max_splits, H_kv, G, D + 2] is scratch; out [B, H * D].
    """
    num_kv_heads, head_dim = blocks.shape[3], blocks.shape[5]
    group = q.shape[1] // num_kv_heads
    keys_values = blocks[:, layer : layer + 1]
    for item in prange(work.shape[0] * num_kv_heads):
        # Neighbouring items go to one thread: spread the heads of a row over both halves.
        entry, kv_head = item % work.shape[0], item // work.shape[0]
        row, split = work[entry, 0], work[entry, 1]
        begin = first_tokens[row] // SPLIT_TOKENS
        start = max(first_tokens[row], (begin + split) * SPLIT_TOKENS)
        stop = min(context_lens[row], (begin + split + 1) * SPLIT_TOKENS)
        queries = q[row, kv_head * group : (kv_head + 1) * group]
        scores = np.empty((group, SPLIT_TOKENS), np.float32)
        _attend(
            queries, keys_values, tables[row], kv_head, start, stop, scale,
            partials[row, split, kv_head], scores,
        )  # fmt: skip
    for item in prange(q.shape[0] * num_kv_heads):
        row, kv_head = item // num_kv_heads, item % num_kv_heads
        num_splits = (context_lens[row] - 1) // SPLIT_TOKENS - first_tokens[row] // SPLIT_TOKENS + 1
        first = kv_head * group * head_dim
        _merge(partials[row, :num_splits, kv_head], out[row, first : first + group * head_dim])
