"""Both attention operations over one pool, for each kind of attention layer that a model has."""

from __future__ import annotations

import torch

from engine.backends.base import AttentionShape
from engine.backends.cuda.attention_decode import AttentionDecode, DecodeLimits
from engine.backends.cuda.attention_prefill import AttentionPrefill
from engine.backends.cuda.step import CudaStep

_FIRST_ROWS = 256


class PoolAttention:
    """Kernels and work buffers; made when a kind of layer is first met.

    Buffers of decode attention grow with the largest step so far; `generation` counts that, since a
    captured graph holds their addresses.
    """

    def __init__(self, blocks: torch.Tensor, *, spread: bool) -> None:
        """`blocks`: the pool, [num_blocks, layers, 2, H_kv, block_size, D]. `spread`: see AttentionDecode."""
        self.generation = 0
        self._blocks, self._spread = blocks, spread
        self._limits = DecodeLimits(_FIRST_ROWS, blocks.shape[0] * blocks.shape[4])
        self._decode: dict[AttentionShape, AttentionDecode] = {}
        self._prefill: dict[AttentionShape, AttentionPrefill] = {}

    def reserve(self, rows: int, context_tokens: int) -> None:
        """Make room for a step of so many decode rows; outside of any capture."""
        limits = self._limits
        if rows <= limits.batch and context_tokens <= limits.tokens:
            return
        tokens = limits.tokens
        while tokens < context_tokens:  # prefixes are shared, so rows may see more than the pool holds
            tokens *= 2
        self._limits = DecodeLimits(max(rows, limits.batch), tokens)
        self._decode.clear()
        self.generation += 1

    def decode(
        self, q: torch.Tensor, step: CudaStep, layer: int, shape: AttentionShape, out: torch.Tensor
    ) -> None:
        """Attend from the leading rows; the first layer of a kind makes the step's work map."""
        rows = step.num_decodes
        attention = self._decode.get(shape)
        if attention is None:
            attention = self._decode[shape] = AttentionDecode(
                self._blocks,
                num_query_heads=shape.num_heads,
                queries=1,
                limits=self._limits,
                window=shape.sliding_window or 0,
                spread=self._spread,
            )
        if shape not in step.decode_plans:
            attention.plan(step.decode_lens)
            step.decode_plans.add(shape)
        attention(
            q[:rows],
            layer,
            step.block_tables[:rows],
            out[:rows].view(rows, shape.num_heads, shape.head_dim),
            scale=shape.scale,
        )

    def prefill(
        self, q: torch.Tensor, step: CudaStep, layer: int, shape: AttentionShape, out: torch.Tensor
    ) -> None:
        """Attend from the tokens of chunks."""
        attention = self._prefill.get(shape)
        if attention is None:
            attention = self._prefill[shape] = AttentionPrefill(
                num_heads=shape.num_heads,
                num_kv_heads=shape.num_kv_heads,
                head_dim=shape.head_dim,
                block_size=self._blocks.shape[4],
                dtype=self._blocks.dtype,
                scale=shape.scale,
                window=shape.sliding_window,
            )
        plan = step.prefill_plans.get(shape)
        if plan is None:
            plan = step.prefill_plans[shape] = attention.plan(
                step.cu_seqlens_q, step.context_lens, step.num_tokens
            )
        attention(
            q,
            self._blocks,
            layer,
            step.block_tables,
            plan,
            out.view(step.num_tokens, shape.num_heads, shape.head_dim),
        )
