"""A step's metadata on the device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from engine.backends.base import AttentionShape


@dataclass(slots=True)
class CudaStep:
    """Metadata, and the plans that the layers of one step share.

    Attributes:
        num_decodes: leading rows with one query token.
        num_tokens: T.
        positions: int32[T].
        slot_mapping: int32[T]; < 0: the token's KV is not stored.
        cu_seqlens_q: int32[B + 1].
        context_lens: int32[B]; 0: an empty place, whose output is zeros.
        block_tables: int32[B, max_blocks], contiguous.
        decode_plans: kinds of attention layer whose work map is made.
        prefill_plans: query tiles by kind of attention layer.
    """

    num_decodes: int
    num_tokens: int
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    cu_seqlens_q: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    decode_plans: set[AttentionShape] = field(default_factory=set)
    prefill_plans: dict[AttentionShape, torch.Tensor] = field(default_factory=dict)
