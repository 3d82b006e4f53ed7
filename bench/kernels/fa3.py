"""FlashAttention-3 as a peer, from the compiled library that vLLM's wheel carries.

The library alone is enough: unzip `vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so` from the vllm 0.26.0 wheel and
name it with `--fa3 PATH`. It reads our pool as it is: pages of [block_size, H_kv, D] by strides.
Source: Shah et al. 2024 (FlashAttention-3); argument order of vLLM 0.26's flash_attn_interface.py.
"""

from pathlib import Path

import torch

HOPPER = (9, 0)


def load(path: Path | None) -> bool:
    """Register the library's operators; False without a path or on another architecture."""
    if path is None or torch.cuda.get_device_capability() != HOPPER:
        return False
    torch.ops.load_library(str(path))
    return True


class FA3:
    """One batch's attention over a paged pool; the schedule is made once, as ours is."""

    def __init__(
        self,
        pool: torch.Tensor,
        num_heads: int,
        cu_seqlens_q: torch.Tensor,
        context_lens: torch.Tensor,
        block_tables: torch.Tensor,
        *,
        max_queries: int,
        max_context: int,
    ) -> None:
        """Make the schedule.

        Args:
            pool: [num_blocks, layers, 2, H_kv, block_size, D].
            cu_seqlens_q: int32[B+1]. context_lens: int32[B]. block_tables: int32[B, max_blocks].
        """
        self._pool, self._tables, self._lens = pool, block_tables, context_lens
        self._cu_seqlens_q, self._max_queries, self._max_context = cu_seqlens_q, max_queries, max_context
        kv_heads, block_size, head_dim = pool.shape[3:]
        self._schedule = torch.ops._vllm_fa3_C.get_scheduler_metadata(
            context_lens.shape[0], max_queries, max_context, num_heads, kv_heads, head_dim, head_dim,
            pool.dtype, context_lens, cu_seqlens_q, None, None, None, None, block_size, 0, True, -1, -1,
            False, 0, None, 0,
        )  # fmt: skip

    def __call__(self, q: torch.Tensor, layer: int, out: torch.Tensor) -> None:
        """Attend causally, aligned bottom right. q, out: [T, H, D]."""
        k, v = (self._pool[:, layer, which].transpose(1, 2) for which in (0, 1))
        nothing = (None,) * 3
        torch.ops._vllm_fa3_C.fwd(
            q, k, v, *nothing, out, self._cu_seqlens_q, None, None, None, self._lens,
            self._max_queries, self._max_context, self._tables, None, None, *nothing, *nothing,
            q.shape[-1] ** -0.5, True, -1, -1, 0.0, True, self._schedule, 0, None, 0, None, 1, 0, None,
        )  # fmt: skip
