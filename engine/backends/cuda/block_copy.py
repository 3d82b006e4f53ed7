"""block_copy: many KV blocks, or slices of them by head, in one launch (cuda/block_copy.cu)."""

import numpy as np
import torch

from engine.backends.cuda import loader
from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts

_VECTOR_BYTES = 16
_BLOCK_VECTORS = 2048  # that one thread block copies
MAX_BLOCKS = 65535


def block_copy(
    src: torch.Tensor,
    dst: torch.Tensor,
    src_ids: torch.Tensor | None,
    dst_ids: torch.Tensor | None,
    *,
    src_heads: slice = slice(None),
    dst_heads: slice = slice(None),
) -> None:
    """Copy blocks between pools, or within one. Modifies `dst`.

    Args:
        src, dst: [blocks, layers, 2, heads, block_size, D], equal but for blocks and heads.
        src_ids, dst_ids: int32[n] on the device; entries < 0 are skipped. None: blocks 0..n-1, so
            that None for dst_ids gathers and None for src_ids scatters. Not both.
        src_heads, dst_heads: heads to copy on each side, as many of one as of the other.
    Raises:
        UnsupportedShapeError: names what does not fit.
    """
    if (
        src.dim() != 6
        or src.dtype != dst.dtype
        or src.shape[1:3] != dst.shape[1:3]
        or src.shape[4:] != dst.shape[4:]
    ):
        raise UnsupportedShapeError(f"block_copy from {list(src.shape)} to {list(dst.shape)}: unlike pools")
    if not (src.is_contiguous() and dst.is_contiguous()):
        raise UnsupportedShapeError("block_copy: pools must be contiguous")
    src_from, src_to, _ = src_heads.indices(src.shape[3])
    dst_from, dst_to, _ = dst_heads.indices(dst.shape[3])
    ids = src_ids if src_ids is not None else dst_ids
    if ids is None or (dst_ids is not None and dst_ids.shape != ids.shape) or ids.shape[0] > MAX_BLOCKS:
        raise UnsupportedShapeError(
            f"block_copy: ids of one length, at most {MAX_BLOCKS}, on at least one side"
        )
    heads = src_to - src_from
    head_bytes = src.shape[4] * src.shape[5] * src.element_size()
    if heads != dst_to - dst_from or heads < 1 or head_bytes % _VECTOR_BYTES:
        raise UnsupportedShapeError(
            f"block_copy of {heads} heads to {dst_to - dst_from}, {head_bytes} bytes each"
        )
    head, segments = head_bytes // _VECTOR_BYTES, src.shape[1] * 2
    src_segment, dst_segment = src.shape[3] * head, dst.shape[3] * head
    src_block, dst_block = segments * src_segment, segments * dst_segment
    segment = heads * head
    if segment == src_segment == dst_segment:  # whole blocks: one run
        segments, segment = 1, segments * segment
    kernel = loader.load("block_copy").kernel("block_copy")
    if ids.shape[0]:
        kernel(
            (-(-segments * segment // _BLOCK_VECTORS), ids.shape[0], 1),
            (256, 1, 1),
            np.uint64(src.data_ptr() + src_from * head_bytes),
            np.uint64(dst.data_ptr() + dst_from * head_bytes),
            src_ids,
            dst_ids,
            np.int64(src_block),
            np.int64(dst_block),
            np.int64(src_segment),
            np.int64(dst_segment),
            np.int32(segments),
            np.int32(segment),
        )


def builds(_: DeviceFacts) -> list[Build]:
    """What `make kernels` makes."""
    return [Build("block_copy", {})]
