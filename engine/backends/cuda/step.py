"""A step's metadata on the device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from engine.backends.base import AttentionShape
from engine.backends.cuda.layer_marks import LayerMarks


@dataclass(slots=True)
class CudaStep:
    """Metadata, and the plans that the layers of one step share.

    Attributes:
        num_decodes: leading rows, of one token, that attention_decode serves; 0: none.
        num_tokens: T.
        has_chunks: attention_prefill serves tokens.
        positions: int32[T].
        slot_mapping: int32[T]; < 0: the token's KV is not stored.
        cu_seqlens_q: int32[B + 1], the first token of each row; one that attention_decode serves has none.
        context_lens: int32[B]; 0: an empty place.
        decode_lens: int32[num_decodes], of rows that attention_decode serves; 0: another row, an empty place.
        block_tables: int32[B, max_blocks], contiguous.
        decode_plans: kinds of attention layer whose work map is made.
        prefill_plans: query tiles by kind of attention layer.
        rows: what it is made of, as step_inputs has it; read by marks only.
        marks: told of each layer whose KV is stored; None: nobody asks.
    """

    num_decodes: int
    num_tokens: int
    has_chunks: bool
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    cu_seqlens_q: torch.Tensor
    context_lens: torch.Tensor
    decode_lens: torch.Tensor
    block_tables: torch.Tensor
    decode_plans: set[AttentionShape] = field(default_factory=set)
    prefill_plans: dict[AttentionShape, torch.Tensor] = field(default_factory=dict)
    rows: torch.Tensor | None = None
    marks: LayerMarks | None = None
