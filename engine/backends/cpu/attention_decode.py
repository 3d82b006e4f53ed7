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
from engine.backends.cpu.prefetch import prefetch

SPLIT_TOKENS = 256
# Tokens, over rows and KV heads, that one thread attends to in about 20 µs.
SMALL_WORK = 1536
LINE_FLOATS = 16


@device_function
def _scores(
    q: FloatArray, keys: FloatArray, first: int, stop: int, following: FloatArray, out: FloatArray
) -> None:
    """q [G, D] on rows first .. stop - 1 of a block keys [block_size, D] -> out [G, stop - first]."""
    head_dim = q.shape[1]
    for j in range(first, stop):
        for i in range(0, head_dim, LINE_FLOATS):
            prefetch(following, j, i)
        for g in range(q.shape[0]):
            score = np.float32(0.0)
            for i in range(head_dim):
                score += q[g, i] * keys[j, i]
            out[g, j - first] = score


@device_function
def _softmax(scores: FloatArray, scale: np.float32, partial: FloatArray) -> None:
    """Exponentials of scores [G, N] in place; their maximum and sum into the tail of partial."""
    head_dim = partial.shape[1] - 2
    for g in range(scores.shape[0]):
        row = scores[g]
        largest = row[0]
        for j in range(1, row.shape[0]):
            largest = max(largest, row[j])
        weight = np.float32(0.0)
        for j in range(row.shape[0]):
            row[j] = exp32((row[j] - largest) * scale)
            weight += row[j]
        partial[g, head_dim] = largest * scale
        partial[g, head_dim + 1] = weight


@device_function
def _accumulate(
    scores: FloatArray, values: FloatArray, first: int, stop: int, following: FloatArray, partial: FloatArray
) -> None:
    """partial[:, :D] += scores [G, stop - first] times rows first .. stop - 1 of values [block_size, D]."""
    head_dim = values.shape[1]
    whole = first + (stop - first) // 4 * 4
    for j in range(first, whole, 4):
        for k in range(4):
            for i in range(0, head_dim, LINE_FLOATS):
                prefetch(following, j + k, i)
        for g in range(scores.shape[0]):
            p0, p1 = scores[g, j - first], scores[g, j - first + 1]
            p2, p3 = scores[g, j - first + 2], scores[g, j - first + 3]
            for i in range(head_dim):
                partial[g, i] += (
                    p0 * values[j, i] + p1 * values[j + 1, i] + p2 * values[j + 2, i] + p3 * values[j + 3, i]
                )
    for j in range(whole, stop):
        for g in range(scores.shape[0]):
            probability = scores[g, j - first]
            for i in range(head_dim):
                partial[g, i] += probability * values[j, i]


@device_function
def _attend(
    q: FloatArray,
    blocks: FloatArray,
    layer: int,
    table: IntArray,
    kv_head: int,
    start: int,
    stop: int,
    scale: np.float32,
    partial: FloatArray,
    scores: FloatArray,
) -> None:
    """Attend from q [G, D] to tokens start .. stop - 1; partial [G, D + 2] = sum, max, weight.

    While a block is worked on, the next one is asked for: blocks lie far apart, and without that
    each would begin with a wait for memory (measured: three times slower).
    """
    block_size = blocks.shape[4]
    first_block, last_block = start // block_size, (stop - 1) // block_size
    for index in range(first_block, last_block + 1):
        if index < last_block:
            following = blocks[table[index + 1], layer, 0, kv_head]
        else:
            following = blocks[table[first_block], layer, 1, kv_head]
        first = max(start - index * block_size, 0)
        end = min(stop - index * block_size, block_size)
        at = index * block_size + first - start
        keys = blocks[table[index], layer, 0, kv_head]
        _scores(q, keys, first, end, following, scores[:, at : at + end - first])
    _softmax(scores[:, : stop - start], scale, partial)
    for g in range(q.shape[0]):
        for i in range(q.shape[1]):
            partial[g, i] = np.float32(0.0)
    for index in range(first_block, last_block + 1):
        following = blocks[table[min(index + 1, last_block)], layer, 1, kv_head]
        first = max(start - index * block_size, 0)
        end = min(stop - index * block_size, block_size)
        at = index * block_size + first - start
        values = blocks[table[index], layer, 1, kv_head]
        _accumulate(scores[:, at : at + end - first], values, first, end, following, partial)


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


@device_function
def _run_item(
    item: int,
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
    """One split of one row for one KV head; a row with a single split is finished here."""
    group = q.shape[1] // blocks.shape[3]
    # Neighbouring items go to one thread: the heads of a row are spread over all of them.
    entry, kv_head = item % work.shape[0], item // work.shape[0]
    row, split = work[entry, 0], work[entry, 1]
    begin = first_tokens[row] // SPLIT_TOKENS
    start = max(first_tokens[row], (begin + split) * SPLIT_TOKENS)
    stop = min(context_lens[row], (begin + split + 1) * SPLIT_TOKENS)
    queries = q[row, kv_head * group : (kv_head + 1) * group]
    scores = np.empty((group, SPLIT_TOKENS), np.float32)
    partial = partials[row, split, kv_head]
    _attend(queries, blocks, layer, tables[row], kv_head, start, stop, scale, partial, scores)
    if (context_lens[row] - 1) // SPLIT_TOKENS == begin:
        _merge(partials[row, :1, kv_head], _columns(out[row], kv_head, group * q.shape[2]))


@device_function
def _columns(out: FloatArray, kv_head: int, width: int) -> FloatArray:
    return out[kv_head * width : (kv_head + 1) * width]


@kernel(
    "void(f4[:, :, ::1], f4[:, :, :, :, :, ::1], i8, i4[:, ::1], i4[::1], i4[::1], i4[:, ::1], f4,"
    " f4[:, :, :, :, ::1], f4[:, ::1], b1)"
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
    is_small: bool,
) -> None:
    """Attend from B queries.

    q [B, H, D]; tables [B, max_blocks]; row b sees tokens first_tokens[b] .. context_lens[b] - 1;
    work [W, 2] lists (row, split), all splits of a row; partials [B, max_splits, H_kv, G, D + 2] is
    scratch; out [B, H * D]; is_small: not worth waking other threads.
    """
    num_kv_heads = blocks.shape[3]
    num_items = work.shape[0] * num_kv_heads
    if is_small:
        for item in range(num_items):
            _run_item(item, q, blocks, layer, tables, first_tokens, context_lens, work, scale, partials, out)
    else:
        for item in prange(num_items):
            _run_item(item, q, blocks, layer, tables, first_tokens, context_lens, work, scale, partials, out)
    if partials.shape[1] == 1:
        return
    width = out.shape[1] // num_kv_heads
    for row in range(q.shape[0]):
        num_splits = (context_lens[row] - 1) // SPLIT_TOKENS - first_tokens[row] // SPLIT_TOKENS + 1
        if num_splits > 1:
            for kv_head in range(num_kv_heads):
                _merge(partials[row, :num_splits, kv_head], _columns(out[row], kv_head, width))
