"""Causal attention of prompt chunks over a paged KV cache: cuda/attention_prefill*.cu.

    step:   plan = attention.plan(cu_seqlens_q, context_lens, num_tokens)   one small launch
    layers: attention(q, pool, layer, block_tables, plan, out)              one launch each

Two kernels compute the same: attention_prefill_sm90 (TMA and wgmma) on Hopper, attention_prefill
(cp.async and mma.sync) everywhere else.
"""

import functools
import math

import numpy as np
import torch

from engine.backends.cuda import loader, tensor_map
from engine.backends.cuda.attention_prefill_tiles import (
    BLOCK_SIZES,
    HEAD_DIMS,
    MAX_GROUP,
    defines,
    packed_heads,
    portable_tiling,
    sm90_tiling,
)
from engine.backends.cuda.dtypes import dtype_code
from engine.backends.cuda.errors import UnsupportedShapeError

_PLAN_THREADS = 1024
_SWIZZLED_COLUMN = 64  # elements, 128 bytes
_BLOCK_RESERVED_BYTES = 1024  # of shared memory, taken by the driver


class AttentionPrefill:
    """The kernel for one kind of attention layer.

    Args:
        scale: multiplies q . k; 1 / sqrt(head_dim) where None.
        window: a token sees itself and window - 1 keys before it; all where None.
        soft_cap: scores become soft_cap * tanh(score / soft_cap); none where None.
        sinks: each head has one more logit, without a value, in its softmax.
        portable: take the sm_80 kernel on Hopper as well.
    Raises:
        UnsupportedShapeError: a size outside HEAD_DIMS, BLOCK_SIZES or MAX_GROUP.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype,
        scale: float | None = None,
        window: int | None = None,
        soft_cap: float | None = None,
        sinks: bool = False,
        portable: bool = False,
    ) -> None:
        if head_dim not in HEAD_DIMS:
            raise UnsupportedShapeError(f"head_dim {head_dim}: attention_prefill takes {HEAD_DIMS}")
        if block_size not in BLOCK_SIZES:
            raise UnsupportedShapeError(f"block_size {block_size}: attention_prefill takes {BLOCK_SIZES}")
        if num_heads % num_kv_heads or num_heads // num_kv_heads > MAX_GROUP:
            raise UnsupportedShapeError(
                f"num_heads {num_heads}: attention_prefill takes 1 to {MAX_GROUP} times "
                f"num_kv_heads {num_kv_heads}"
            )
        facts = loader.facts()
        hopper = facts.arch == "sm_90a" and not portable
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim, self.block_size = head_dim, block_size
        self.dtype = dtype
        self.pack = packed_heads(num_heads, num_kv_heads)
        self.tiling = sm90_tiling(head_dim, soft_cap is not None) if hopper else portable_tiling(head_dim)
        self.has_sinks = sinks
        self._hopper = hopper
        self._window = window or 0
        self._scale = np.float32(scale if scale is not None else head_dim**-0.5)
        self._soft_cap = np.float32(soft_cap or 0.0)
        # The portable kernel leaves room for two blocks where shared memory does.
        room = facts.shared_bytes_per_sm // (self.tiling.shared_bytes + _BLOCK_RESERVED_BYTES)
        self._num_blocks = facts.num_sms * (1 if hopper else max(1, min(2, room)))
        name = "attention_prefill_sm90" if hopper else "attention_prefill"
        self._kernel = loader.load(
            name,
            defines=defines(
                head_dim,
                block_size,
                dtype_code(dtype),
                self.pack,
                window=window is not None,
                soft_cap=soft_cap is not None,
                sinks=sinks,
            ),
        ).kernel(name)
        self._plan_kernel = loader.load("attention_prefill_plan").kernel("attention_prefill_plan")
        self._q_map = functools.lru_cache(maxsize=64)(self._encode_q)
        self._kv_map = functools.lru_cache(maxsize=8)(self._encode_kv)

    def plan(self, cu_seqlens_q: torch.Tensor, context_lens: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """List a step's query tiles, longest first, on the device. One plan serves one launch at a time.

        Args:
            cu_seqlens_q: int32[B + 1].
            context_lens: int32[B], keys of each request, its chunk included.
            num_tokens: at least cu_seqlens_q[B].
        Returns:
            int32[n, 4], to be handed to every layer's call.
        """
        batch = context_lens.shape[0]
        tokens = self.tiling.rows // self.pack
        plan = torch.empty(1 + batch + num_tokens // tokens, 4, dtype=torch.int32, device=context_lens.device)
        self._plan_kernel(
            (1, 1, 1),
            (_PLAN_THREADS, 1, 1),
            cu_seqlens_q,
            context_lens,
            plan,
            np.int32(batch),
            np.int32(tokens),
            np.int32(self.tiling.keys),
            np.int32(self._window),
        )
        return plan

    def __call__(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        layer: int,
        block_tables: torch.Tensor,
        plan: torch.Tensor,
        out: torch.Tensor,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """Write the attention of every query token to out, on torch's current stream.

        Args:
            q: [T, H, D], heads contiguous, any token stride that is a multiple of 16 bytes.
            pool: [num_blocks, L, 2, H_kv, block_size, D], contiguous; the chunk's keys are in it.
            block_tables: int32[B, max_blocks], pad -1.
            plan: of this step, from plan().
            out: [T, H, D], contiguous.
            sinks: float32[H] when the layer has them.
        """
        assert (sinks is not None) == self.has_sinks
        assert q.stride()[1:] == (self.head_dim, 1)
        assert out.is_contiguous()
        assert pool.is_contiguous()
        first: tuple[np.ndarray | torch.Tensor | np.generic, ...]
        if self._hopper:
            first = (
                self._q_map(q.data_ptr(), q.shape[0], q.stride(0)),
                self._kv_map(pool.data_ptr(), pool.shape),
            )
        else:
            first = (q, pool, np.int64(q.stride(0)))
        limit = (plan.shape[0] - 1) * (self.num_heads // self.pack)
        self._kernel(
            (min(self._num_blocks, limit), 1, 1),
            (self.tiling.threads, 1, 1),
            *first,
            out,
            block_tables,
            plan,
            sinks,
            np.int32(block_tables.shape[1]),
            np.int32(self.num_heads),
            np.int32(self.num_kv_heads),
            np.int32(pool.shape[1]),
            np.int32(layer),
            np.int32(self._window),
            self._scale,
            self._soft_cap,
            shared_bytes=self.tiling.shared_bytes,
        )

    def _encode_q(self, address: int, num_tokens: int, token_stride: int) -> np.ndarray:
        return tensor_map.tiled_16bit(
            address,
            (self.head_dim, self.num_heads, num_tokens),
            (self.head_dim * 2, token_stride * 2),
            (_SWIZZLED_COLUMN, self.pack, self.tiling.rows // self.pack),
            tensor_map.Swizzle.BYTES_128,
        )

    def _encode_kv(self, address: int, shape: torch.Size) -> np.ndarray:
        rows = math.prod(shape[:-1])
        box = math.gcd(self.block_size, self.tiling.keys)
        return tensor_map.tiled_16bit(
            address,
            (self.head_dim, rows),
            (self.head_dim * 2,),
            (_SWIZZLED_COLUMN, box),
            tensor_map.Swizzle.BYTES_128,
        )
