"""Kernels around the products of attention_prefill: gather of paged blocks, causal softmax."""

from __future__ import annotations

import numpy as np
from numba import prange

from engine.backends.cpu.arrays import FloatArray, IntArray
from engine.backends.cpu.exponential import exp32
from engine.backends.cpu.jit import kernel


@kernel("void(f4[:, :, :, :, :, ::1], i8, i4[::1], i8, f4[:, :, :, ::1])")
def gather_keys_values(blocks: FloatArray, layer: int, table: IntArray, first: int, out: FloatArray) -> None:
    """Tokens first .. first + S - 1 of one row -> out [2, H_kv, S, D]."""
    num_kv_heads, block_size, head_dim = blocks.shape[3], blocks.shape[4], blocks.shape[5]
    for item in prange(2 * num_kv_heads):
        part, head = item // num_kv_heads, item % num_kv_heads
        for j in range(out.shape[2]):
            block, offset = table[(first + j) // block_size], (first + j) % block_size
            for i in range(head_dim):
                out[part, head, j, i] = blocks[block, layer, part, head, offset, i]


@kernel("void(f4[:, :, ::1], f4, f4[:, :, :, ::1])")
def fold_queries(q: FloatArray, scale: np.float32, out: FloatArray) -> None:
    """q [T, H, D] -> out [H_kv, T, G, D], scaled: the query heads of a KV head become rows."""
    group = out.shape[2]
    for t in prange(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                out[h // group, t, h % group, i] = q[t, h, i] * scale


@kernel("void(f4[:, ::1], i8, i8, i8)")
def causal_softmax(scores: FloatArray, group: int, last_key: int, window: int) -> None:
    """Softmax over the keys that each row may see, in place; the others become 0.

    scores [T * G, S]; row r belongs to query token r // group, whose own key is
    last_key + r // group; with window > 0 it sees the `window` keys that end there.
    """
    for r in prange(scores.shape[0]):
        row = scores[r]
        stop = min(last_key + r // group + 1, row.shape[0])
        start = max(stop - window, 0) if window > 0 else 0
        largest = row[start]
        for j in range(start, stop):
            largest = max(largest, row[j])
        total = np.float32(0.0)
        for j in range(start, stop):
            row[j] = exp32(row[j] - largest)
            total += row[j]
        factor = np.float32(1.0) / total
        for j in range(start):
            row[j] = np.float32(0.0)
        for j in range(start, stop):
            row[j] *= factor
        for j in range(stop, row.shape[0]):
            row[j] = np.float32(0.0)


@kernel("void(f4[:, ::1], i8, i8, f4[:, ::1])")
def unfold_context(context: FloatArray, kv_head: int, num_kv_heads: int, out: FloatArray) -> None:
    """context [T, G * D] of one KV head -> its columns of out [T, H * D]."""
    width = out.shape[1] // num_kv_heads
    for t in prange(out.shape[0]):
        for i in range(width):
            out[t, kv_head * width + i] = context[t, i]
