"""The attention part of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.backends.base import AttentionShape, Backend, KVPool, PackedLinear, QKNorm, RopeTable, Step


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention over paged blocks.

    Attributes:
        backend: where it runs.
        shape: constants.
        rope: rotary embedding, shared by all layers.
        norm: norm of query and key heads, where the architecture has one.
        qkv: queries, keys and values in one product.
        output: back to the hidden size.
        layer: index inside the cache group.
    """

    backend: Backend
    shape: AttentionShape
    rope: RopeTable
    norm: QKNorm | None
    qkv: PackedLinear
    output: PackedLinear
    layer: int

    def context(self, x: torch.Tensor, step: Step, pool: KVPool) -> torch.Tensor:
        """x [T, E] -> new [T, H * D], before the output product. Stores the step's K and V."""
        backend = self.backend
        qkv = backend.linear(x, self.qkv)
        q = backend.rope_kv_store(qkv, step, pool, self.layer, self.shape, self.rope, self.norm)
        out = torch.empty(
            (x.shape[0], self.shape.num_heads * self.shape.head_dim), dtype=x.dtype, device=x.device
        )
        if step.num_decodes:
            backend.attention_decode(q, step, pool, self.layer, self.shape, out)
        if step.has_chunks:
            backend.attention_prefill(q, step, pool, self.layer, self.shape, out)
        return out

    def project(self, context: torch.Tensor) -> torch.Tensor:
        """[T, H * D] -> new [T, E]."""
        return self.backend.linear(context, self.output)
