"""The CPU backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engine.backends.base import (
    Activation,
    AttentionShape,
    KVPool,
    PackedLinear,
    PoolMemory,
    QKNorm,
    RopeTable,
    Step,
)
from engine.backends.batch import BatchMetadata
from engine.backends.cpu import rms_norm as rms_norm_kernels
from engine.backends.cpu.arrays import FloatArray
from engine.backends.cpu.attention_decode import SMALL_WORK, attention_decode
from engine.backends.cpu.attention_prefill import (
    causal_softmax,
    fold_queries,
    gather_keys_values,
    unfold_context,
)
from engine.backends.cpu.gated_activation import gated_silu
from engine.backends.cpu.linear import CpuLinear, product
from engine.backends.cpu.rope_kv_store import rope_kv_store
from engine.backends.cpu.step import CpuStep
from engine.kv.layout import CacheGroup

_NO_NORM: FloatArray = np.empty(0, np.float32)
_QUERY_TILE = 256
_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class CpuBackend:
    """Float32 operations on the host. See the protocol for shapes and effects."""

    dtype: torch.dtype = torch.float32
    device: torch.device = _HOST

    def allocate_pool(self, group: CacheGroup, num_blocks: int, memory: PoolMemory | None) -> KVPool:
        """A pool over `memory`, or over memory of its own."""
        assert not isinstance(memory, int), "a device address given to the cpu backend"
        num_floats = num_blocks * group.block_bytes // 4
        if memory is None:
            floats = np.empty(num_floats, np.float32)
        else:
            floats = np.frombuffer(memory, np.float32, num_floats)
        view = floats.data.cast("B")
        return KVPool(group, torch.from_numpy(floats).view(num_blocks, *group.shape), view)

    def load_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """A copy in float32: mapped files may go away."""
        return weight.to(self.dtype, copy=True).contiguous()

    def pack_linear(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] | None
    ) -> CpuLinear:
        """Pack for oneDNN."""
        return CpuLinear.pack(_stacked(weights), None if biases is None else _stacked(biases))

    def tie_linear(self, table: torch.Tensor) -> CpuLinear:
        """A packed copy: the table itself is read by rows."""
        return CpuLinear.pack(table, None)

    def upload(self, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A copy: the caller may write over its own."""
        return tensor.to(dtype or self.dtype, copy=True).contiguous()

    def begin(self, metadata: BatchMetadata, pool: KVPool) -> CpuStep:
        """The host can read the metadata as it is."""
        return CpuStep(metadata)

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        """x [T, K] -> new [T, N]."""
        assert isinstance(weight, CpuLinear)
        return weight.forward(x)

    def logits(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        """x [T, K] -> new [T, V]."""
        return self.linear(x, weight)

    def embedding(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """token_ids int32[T] -> new [T, E]."""
        return table.index_select(0, token_ids)

    def take_rows(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """x [T, ...], rows int32[R] -> new [R, ...]."""
        return x.index_select(0, rows)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Norm of x, or of residual += x."""
        out = torch.empty_like(x)
        if residual is None:
            rms_norm_kernels.rms_norm(x.numpy(), weight.numpy(), np.float32(eps), out.numpy())
        else:
            rms_norm_kernels.add_rms_norm(
                x.numpy(), residual.numpy(), weight.numpy(), np.float32(eps), out.numpy()
            )
        return out

    def layer_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Norm of x, or of residual += x, mean taken off."""
        if residual is not None:
            x = residual.add_(x)
        return F.layer_norm(x, (x.shape[1],), weight, bias, eps)

    def gated_activation(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """gate_up [T, 2 F] -> new [T, F]."""
        width = gate_up.shape[1] // 2
        if activation is Activation.SILU:
            out = gate_up.new_empty((gate_up.shape[0], width))
            gated_silu(gate_up.numpy(), out.numpy())
            return out
        approximate = "tanh" if activation is Activation.GELU_TANH else "none"
        return F.gelu(gate_up[:, :width], approximate=approximate).mul_(gate_up[:, width:])

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
        """One pass over the tokens."""
        assert isinstance(step, CpuStep)
        queries = torch.empty((qkv.shape[0], shape.num_heads, shape.head_dim))
        rope_kv_store(
            qkv.numpy(),
            step.metadata.positions,
            step.metadata.slot_mapping,
            rope.cos_sin.numpy(),
            _NO_NORM if norm is None else norm.query.numpy(),
            _NO_NORM if norm is None else norm.key.numpy(),
            np.float32(0.0 if norm is None else norm.eps),
            pool.blocks.numpy(),
            layer,
            queries.numpy(),
        )
        return queries

    def attention_decode(
        self,
        q: torch.Tensor,
        step: Step,
        pool: KVPool,
        layer: int,
        shape: AttentionShape,
        out: torch.Tensor,
    ) -> None:
        """Leading rows, straight from the blocks."""
        assert isinstance(step, CpuStep)
        num_rows = step.num_decodes
        work = step.decode_work(shape.sliding_window)
        attention_decode(
            q[:num_rows].numpy(),
            pool.blocks.numpy(),
            layer,
            step.metadata.block_tables,
            work.first_tokens,
            step.metadata.context_lens,
            work.work,
            np.float32(shape.scale),
            step.partials(work, shape),
            out.numpy(),
            work.num_tokens * shape.num_kv_heads <= SMALL_WORK,
        )

    def attention_prefill(
        self,
        q: torch.Tensor,
        step: Step,
        pool: KVPool,
        layer: int,
        shape: AttentionShape,
        out: torch.Tensor,
    ) -> None:
        """Chunk by chunk: gather the row's keys and values, then products and a causal softmax by tiles."""
        assert isinstance(step, CpuStep)
        metadata = step.metadata
        for row in range(step.num_decodes, metadata.num_rows):
            start, stop = int(metadata.cu_seqlens_q[row]), int(metadata.cu_seqlens_q[row + 1])
            context_len = int(metadata.context_lens[row])
            first_position = context_len - (stop - start)
            window = shape.sliding_window
            first_key = 0 if window is None else max(first_position + 1 - window, 0)
            gathered = torch.empty((2, shape.num_kv_heads, context_len - first_key, shape.head_dim))
            table = metadata.block_tables[row]
            gather_keys_values(pool.blocks.numpy(), layer, table, first_key, gathered.numpy())
            for tile in range(start, stop, _QUERY_TILE):
                end = min(tile + _QUERY_TILE, stop)
                own_key = first_position + (tile - start) - first_key
                _attend_tile(q[tile:end], gathered, own_key, shape, out[tile:end])

    def block_copy(self, pool: KVPool, src: Sequence[int], dst: Sequence[int]) -> None:
        """Whole blocks, all layers."""
        pool.blocks[list(dst)] = pool.blocks[list(src)]


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(tuple(parts))).to(torch.float32)


def _attend_tile(
    q: torch.Tensor, gathered: torch.Tensor, own_key: int, shape: AttentionShape, out: torch.Tensor
) -> None:
    """Queries [T, H, D], whose first one's own key is gathered[:, :, own_key], -> out [T, H * D]."""
    num_tokens, num_kv_heads = q.shape[0], shape.num_kv_heads
    group = shape.num_heads // num_kv_heads
    folded = torch.empty((num_kv_heads, num_tokens, group, shape.head_dim))
    fold_queries(q.numpy(), np.float32(shape.scale), folded.numpy())
    last_key = own_key + num_tokens
    for head in range(num_kv_heads):
        keys, values = gathered[0, head, :last_key], gathered[1, head, :last_key]
        scores = product(folded[head].view(-1, shape.head_dim), keys)
        causal_softmax(scores.numpy(), group, own_key, shape.sliding_window or 0)
        context = product(scores, values.t())
        unfold_context(context.view(num_tokens, -1).numpy(), head, num_kv_heads, out.numpy())
