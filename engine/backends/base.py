"""The backend protocol: the operations of which every model is composed.

A model calls these and never learns where they run. Each name is also the name of a kernel,
its test and its bench. Tensors live on the backend's device, in its dtype, contiguous unless
said otherwise. T tokens, B rows, H query heads, H_kv KV heads, D head size, R sampled rows.

    begin(metadata) ─► Step, once a step; all layers share it
    layer: rms_norm ─► linear ─► rope_kv_store ─► attention_decode + attention_prefill ─► linear
           rms_norm ─► linear ─► gated_activation ─► linear
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from engine.backends.batch import BatchMetadata
from engine.kv.layout import CacheGroup


class Activation(enum.Enum):
    """Non-linearity of a gated feed-forward part."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Constants of one attention layer.

    Attributes:
        num_heads: H, a multiple of num_kv_heads.
        num_kv_heads: H_kv.
        head_dim: D.
        scale: factor on the scores before softmax.
        sliding_window: keys that a query sees, its own included; None: all before it.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Rotary embedding by lookup; every kind of rope is a different table.

    Attributes:
        cos_sin: float32[max_positions, rotary_dim], cosines in the first half, sines in the second,
            attention factor included.
        rotary_dim: leading entries of a head that turn; pairs are (i, i + rotary_dim / 2).
    """

    cos_sin: torch.Tensor
    rotary_dim: int


@dataclass(frozen=True, slots=True)
class QKNorm:
    """RMS norm of each query and key head before the rotation (Qwen3): weights [D]."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float


PoolMemory = memoryview | int
"""Memory that someone else owns: on the host, or a device address."""


@dataclass(frozen=True, slots=True)
class KVPool:
    """The KV memory of one cache group.

    Attributes:
        group: its shape and layers.
        blocks: [num_blocks, layers, 2, kv_heads, block_size, head_dim].
        memory: the same bytes, for whoever moves blocks; None where the host cannot see them.
    """

    group: CacheGroup
    blocks: torch.Tensor
    memory: memoryview | None


class PackedLinear(Protocol):
    """Weights of one product in whatever form the backend multiplies fastest."""

    @property
    def in_features(self) -> int:
        """Columns of the input."""
        ...

    @property
    def out_features(self) -> int:
        """Columns of the output."""
        ...


class Step(Protocol):
    """A step's metadata where the operations can read it, with any work maps made from it."""

    @property
    def num_decodes(self) -> int:
        """Leading rows, and tokens, that attention_decode serves; 0: none."""
        ...

    @property
    def has_chunks(self) -> bool:
        """Whether there are tokens that attention_prefill serves."""
        ...

    @property
    def num_tokens(self) -> int:
        """T."""
        ...


class Backend(Protocol):
    """Operations on one device. Not thread-safe: the engine thread alone calls them."""

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and KV."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        ...

    def allocate_pool(self, group: CacheGroup, num_blocks: int, memory: PoolMemory | None) -> KVPool:
        """Make the pool of a cache group over `memory` (num_blocks * block_bytes), or over its own.

        Blocks are not cleared: nothing reads a slot before it was stored.
        """
        ...

    def load_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight from any device, in the backend's dtype, where the backend keeps its weights."""
        ...

    def pack_linear(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] | None
    ) -> PackedLinear:
        """One product of weights [N_i, K] (and biases [N_i]) that share their input, stacked: N = sum N_i."""
        ...

    def tie_linear(self, table: torch.Tensor) -> PackedLinear:
        """The product with an embedding table that load_weight gave."""
        ...

    def upload(self, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A host tensor on the device, in the backend's dtype or the one given; no weight."""
        ...

    def begin(self, metadata: BatchMetadata, pool: KVPool) -> Step:
        """Make a step's metadata readable by the operations. Once a step and cache group."""
        ...

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        """x [T, K] -> new [T, N] = x @ weight.T + bias."""
        ...

    def logits(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        """As linear, but float32 [T, V], not rounded to the backend's dtype; the next call may reuse it."""
        ...

    def embedding(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """token_ids int32[T], table [V, E] -> new [T, E]."""
        ...

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x [T, E], weight [E] -> new [T, E].

        With `residual` [T, E]: modifies it to residual + x, and that is what is normalised.
        Source: Zhang and Sennrich 2019.
        """
        ...

    def layer_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As rms_norm, with the mean taken off and a bias [E]. Source: Ba et al. 2016."""
        ...

    def gated_activation(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """gate_up [T, 2 F] (gate, then up) -> new [T, F] = activation(gate) * up."""
        ...

    def rope_kv_store(
        self,
        qkv: torch.Tensor,
        step: Step,
        pool: KVPool,
        layer: int,
        shape: AttentionShape,
        rope: RopeTable,
        norm: QKNorm | None,
    ) -> torch.Tensor:
        """Norm (if any) and rotate queries and keys; store keys and values into the step's slots.

        Modifies `pool` at slot_mapping of `layer` (index inside the group), and leaves `qkv`
        [T, (H + 2 H_kv) D] (queries, keys, values) undefined.

        Returns:
            Queries, new [T, H, D].
        Source: Su et al. 2021 (RoFormer), in the half-split form.
        """
        ...

    def attention_decode(
        self,
        q: torch.Tensor,
        step: Step,
        pool: KVPool,
        layer: int,
        shape: AttentionShape,
        out: torch.Tensor,
    ) -> None:
        """Attend from the first num_decodes queries to their contexts. Modifies out[:num_decodes].

        q as rope_kv_store returns it, out [T, H * D]. The KV is split at fixed sizes, so a row's
        result does not depend on its neighbours.
        """
        ...

    def attention_prefill(
        self,
        q: torch.Tensor,
        step: Step,
        pool: KVPool,
        layer: int,
        shape: AttentionShape,
        out: torch.Tensor,
    ) -> None:
        """Attend causally, aligned bottom right, from the chunks' queries. Modifies their rows of `out`.

        Comes after attention_decode, which in a padded step writes zeros there.
        """
        ...

    def block_copy(self, pool: KVPool, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy blocks inside a pool, all layers. Modifies blocks `dst`; src and dst are disjoint."""
        ...

    def take_rows(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """x [T, ...], rows int32[R] -> new [R, ...]."""
        ...
