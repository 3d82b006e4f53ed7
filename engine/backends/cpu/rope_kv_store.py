"""rope_kv_store: norm of heads, rotation, and the write into blocks, in one pass over the tokens."""

from __future__ import annotations

import numpy as np
from numba import prange

from engine.backends.cpu.arrays import FloatArray, IntArray
from engine.backends.cpu.jit import SERIAL_ROWS, device_function, kernel


@device_function
def _norm_head(head: FloatArray, weight: FloatArray, eps: np.float32) -> None:
    total = np.float32(0.0)
    for i in range(head.shape[0]):
        total += head[i] * head[i]
    factor = np.float32(1.0) / np.sqrt(total / np.float32(head.shape[0]) + eps)
    for i in range(head.shape[0]):
        head[i] = head[i] * factor * weight[i]


@device_function
def _rotate(head: FloatArray, angles: FloatArray, out: FloatArray) -> None:
    half = angles.shape[0] // 2
    for i in range(half):
        out[i] = head[i] * angles[i] - head[half + i] * angles[half + i]
    for i in range(half):
        out[half + i] = head[half + i] * angles[i] + head[i] * angles[half + i]
    for i in range(2 * half, head.shape[0]):
        out[i] = head[i]


@device_function
def _token(
    qkv: FloatArray,
    angles: FloatArray,
    query_norm: FloatArray,
    key_norm: FloatArray,
    eps: np.float32,
    blocks: FloatArray,
    layer: int,
    slot: int,
    queries: FloatArray,
) -> None:
    """One token: qkv [(H + 2 H_kv) D], angles [rotary_dim], queries [H, D]."""
    num_kv_heads, block_size, head_dim = blocks.shape[3], blocks.shape[4], blocks.shape[5]
    num_heads = queries.shape[0]
    block, offset = slot // block_size, slot % block_size
    for h in range(num_heads + num_kv_heads):
        head = qkv[h * head_dim : (h + 1) * head_dim]
        if query_norm.shape[0] > 0:
            _norm_head(head, query_norm if h < num_heads else key_norm, eps)
        if h < num_heads:
            _rotate(head, angles, queries[h])
        else:
            _rotate(head, angles, blocks[block, layer, 0, h - num_heads, offset])
    for h in range(num_kv_heads):
        start = (num_heads + num_kv_heads + h) * head_dim
        value = blocks[block, layer, 1, h, offset]
        for i in range(head_dim):
            value[i] = qkv[start + i]


@kernel(
    "void(f4[:, ::1], i4[::1], i4[::1], f4[:, ::1], f4[::1], f4[::1], f4,"
    " f4[:, :, :, :, :, ::1], i8, f4[:, :, ::1])"
)
def rope_kv_store(
    qkv: FloatArray,
    positions: IntArray,
    slots: IntArray,
    cos_sin: FloatArray,
    query_norm: FloatArray,
    key_norm: FloatArray,
    eps: np.float32,
    blocks: FloatArray,
    layer: int,
    queries: FloatArray,
) -> None:
    """Rotate the queries of `qkv` into `queries`, its keys into their slots; store its values.

    qkv [T, (H + 2 H_kv) D], modified where heads are normed; queries [T, H, D];
    cos_sin [max_positions, rotary_dim]; norms [D], or empty for none;
    blocks [num_blocks, layers, 2, H_kv, block_size, D].
    """
    if qkv.shape[0] < SERIAL_ROWS:
        for t in range(qkv.shape[0]):
            _token(
                qkv[t], cos_sin[positions[t]], query_norm, key_norm, eps, blocks, layer, slots[t], queries[t]
            )
    else:
        for t in prange(qkv.shape[0]):
            _token(
                qkv[t], cos_sin[positions[t]], query_norm, key_norm, eps, blocks, layer, slots[t], queries[t]
            )
