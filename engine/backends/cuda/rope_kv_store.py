"""rope_kv_store: rotation, QK norm and the write into blocks, in one pass (cuda/rope_kv_store.cu)."""

import numpy as np
import torch

from engine.backends.base import QKNorm, RopeTable
from engine.backends.cuda import loader
from engine.backends.cuda.dtypes import dtype_code
from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts

_BLOCK_BYTES = 48 * 1024  # of qkv that a block may hold in shared memory, if it takes several tokens


def tokens_per_block(tokens: int, token_bytes: int, num_sms: int) -> int:
    """Tokens of a block: up to 4, if that still makes four blocks a multiprocessor."""
    if tokens < 16 * num_sms:
        return 1
    return max(1, min(4, _BLOCK_BYTES // token_bytes))


def rope_kv_store(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    rope: RopeTable,
    norm: QKNorm | None,
    *,
    interleaved: bool = False,
) -> torch.Tensor:
    """Rotate queries and keys, store keys and values. Modifies `pool` at `slots` of `layer`.

    On Hopper and later it may start before the kernel ahead of it on the stream has ended: that one may
    write qkv, but not positions, slots or the rope table.

    Args:
        qkv: [T, (H + 2 H_kv) D], queries, keys, values.
        positions: int32[T], rows of the rope table.
        slots: int32[T], block * block_size + offset; < 0: nothing is stored.
        pool: [blocks, layers, 2, H_kv, block_size, D].
        interleaved: pairs are (2i, 2i + 1), not (i, i + rotary_dim / 2).
    Returns:
        Queries, new [T, H, D].
    Raises:
        UnsupportedShapeError: names the size that the kernel does not take.
    Source: Su et al. 2021 (RoFormer).
    """
    _, layers, _, kv_heads, block_size, head_dim = pool.shape
    tokens, width = qkv.shape
    heads = width // head_dim - 2 * kv_heads
    if width % head_dim or heads < 1 or not (qkv.is_contiguous() and pool.is_contiguous()):
        raise UnsupportedShapeError(f"qkv {list(qkv.shape)} does not fit a pool of {list(pool.shape)}")
    if head_dim % 8 or head_dim > 256 or block_size & (block_size - 1):
        raise UnsupportedShapeError(
            f"head_dim {head_dim}: a multiple of 8 up to 256; block_size {block_size}: 2^n"
        )
    step = 8 if interleaved else 16
    if rope.rotary_dim % step or rope.rotary_dim > head_dim:
        raise UnsupportedShapeError(f"rotary_dim {rope.rotary_dim}: a multiple of {step} up to {head_dim}")
    module = loader.load(
        "rope_kv_store",
        defines={"DTYPE": dtype_code(qkv.dtype), "HEAD_DIM": head_dim, "INTERLEAVED": int(interleaved)},
    )
    queries = torch.empty(tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    layer_elements = 2 * kv_heads * block_size * head_dim
    facts = loader.facts()
    token_bytes = width * qkv.element_size() + rope.rotary_dim * 4
    per_block = tokens_per_block(tokens, token_bytes, facts.num_sms)
    if tokens:
        module.kernel("rope_kv_store")(
            (-(-tokens // per_block), 1, 1),
            (256, 1, 1),
            qkv,
            positions,
            slots,
            rope.cos_sin,
            norm.query if norm else None,
            norm.key if norm else None,
            queries,
            np.uint64(pool.data_ptr() + layer * layer_elements * pool.element_size()),
            np.int64(layers * layer_elements),
            np.int32(tokens),
            np.int32(per_block),
            np.int32(heads),
            np.int32(kv_heads),
            np.int32(block_size.bit_length() - 1),
            np.int32(rope.rotary_dim),
            np.float32(norm.eps if norm else 0.0),
            shared_bytes=per_block * token_bytes,
            overlaps=facts.major >= 9,
        )
    return queries


def builds(_: DeviceFacts) -> list[Build]:
    """What `make kernels` makes: the usual head sizes, both pairings."""
    return [
        Build("rope_kv_store", {"DTYPE": dtype, "HEAD_DIM": head_dim, "INTERLEAVED": interleaved})
        for head_dim in (64, 80, 96, 128, 256)
        for interleaved in (0, 1)
        for dtype in (0, 1)
    ]
