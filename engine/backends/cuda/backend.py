"""The CUDA backend: the kernels of this package under the protocol of engine/backends/base.py.

Everything is launched on torch's current stream and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

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
from engine.backends.cuda import loader
from engine.backends.cuda.attention import PoolAttention
from engine.backends.cuda.block_copy import block_copy
from engine.backends.cuda.embedding import embedding
from engine.backends.cuda.gated_activation import gated_activation
from engine.backends.cuda.linear import CudaLinear, Mode
from engine.backends.cuda.norms import layer_norm, rms_norm
from engine.backends.cuda.placement import OwnMemory, Placement
from engine.backends.cuda.pool_memory import pool_blocks
from engine.backends.cuda.rope_kv_store import rope_kv_store
from engine.backends.cuda.step import CudaStep
from engine.backends.cuda.upload import Upload
from engine.kv.layout import CacheGroup


class CudaBackend:
    """Operations on torch's current device, in bf16 or fp16. See the protocol for shapes and effects."""

    def __init__(
        self, dtype: torch.dtype, placement: Placement | None = None, *, batch_invariant: bool = False
    ) -> None:
        """Check the device.

        Args:
            placement: where weights lie; None: each in memory of its own.
            batch_invariant: a token's bits depend on its request alone, at some cost.
        Raises:
            KernelError: no cupy, driver or device, or one that is too old; each says what to do.
        """
        self.dtype = dtype
        self.device = torch.device("cuda", loader.current_device())
        _ = loader.facts().arch
        self._mode = Mode.INVARIANT if batch_invariant else Mode.FAST
        self._placement = placement or OwnMemory()
        self._upload = Upload()
        self._attention: dict[int, PoolAttention] = {}
        self._logits = torch.empty(0, dtype=torch.float32, device=self.device)

    def attention(self, pool: KVPool) -> PoolAttention:
        """Kernels and work buffers of a pool."""
        address = pool.blocks.data_ptr()
        found = self._attention.get(address)
        if found is None:
            found = self._attention[address] = PoolAttention(pool.blocks, spread=self._mode is Mode.FAST)
        return found

    def forget(self, pool: KVPool) -> None:
        """Drop what is kept for a pool that is used no more."""
        self._attention.pop(pool.blocks.data_ptr(), None)

    def reserve_logits(self, rows: int, vocab_size: int) -> None:
        """Set memory aside for the logits of steps of so many rows: every step uses it, graphs too."""
        if rows * vocab_size > len(self._logits):
            self._logits = torch.empty(rows * vocab_size, dtype=torch.float32, device=self.device)

    # Memory.

    def allocate_pool(self, group: CacheGroup, num_blocks: int, memory: PoolMemory | None) -> KVPool:
        """A pool at an address, or in an allocation of its own."""
        assert not isinstance(memory, memoryview), "host memory given to the cuda backend"
        return KVPool(group, pool_blocks(group, num_blocks, memory), None)

    def load_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight where the placement says."""
        placed = self._placement.place(weight.shape, self.dtype)
        self._upload.fill(placed, weight)
        return placed

    def pack_linear(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] | None
    ) -> CudaLinear:
        """Stacked weights, and stacked biases."""
        bias = None if biases is None else self._stack(biases)
        return CudaLinear.create(self._stack(weights), bias, self._mode)

    def tie_linear(self, table: torch.Tensor) -> CudaLinear:
        """The table itself."""
        return CudaLinear.create(table, None, self._mode)

    def upload(self, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A copy through pinned memory, which the caller need not wait for."""
        converted = tensor.to(dtype or self.dtype)
        return converted.pin_memory().to(self.device, non_blocking=True)

    def _stack(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = sum(part.shape[0] for part in parts)
        placed = self._placement.place(torch.Size((rows, *parts[0].shape[1:])), self.dtype)
        start = 0
        for part in parts:
            self._upload.fill(placed[start : start + part.shape[0]], part)
            start += part.shape[0]
        return placed

    # A step.

    def begin(self, metadata: BatchMetadata, pool: KVPool) -> CudaStep:
        """All metadata in one copy."""
        num_decodes = metadata.num_decodes
        arrays = (
            metadata.positions,
            metadata.slot_mapping,
            np.maximum(metadata.cu_seqlens_q, num_decodes),  # decode rows are of one token each
            metadata.context_lens,
            metadata.block_tables.ravel(),
        )
        flat = self.upload(torch.from_numpy(np.concatenate(arrays)), torch.int32)
        ends = np.cumsum([len(array) for array in arrays])
        positions, slots, cu_seqlens_q, context_lens, tables = (
            flat[end - len(array) : end] for end, array in zip(ends, arrays, strict=True)
        )
        decode_context = int(metadata.context_lens[:num_decodes].sum())
        self.attention(pool).reserve(num_decodes, decode_context)
        return CudaStep(
            num_decodes=num_decodes,
            num_tokens=metadata.num_tokens,
            has_chunks=num_decodes < metadata.num_tokens,
            positions=positions,
            slot_mapping=slots,
            cu_seqlens_q=cu_seqlens_q,
            context_lens=context_lens,
            decode_lens=context_lens[:num_decodes],
            block_tables=tables.view(metadata.block_tables.shape),
        )

    # Operations.

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        """x [T, K] -> new [T, N]."""
        assert isinstance(weight, CudaLinear)
        return weight.forward(x)

    def logits(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        """x [T, K] -> float32[T, V], in memory that the next step writes again."""
        assert isinstance(weight, CudaLinear)
        rows, width = x.shape[0], weight.out_features
        # Graphs hold the reserved memory, so it is never replaced; larger steps are seldom.
        memory = self._logits
        if rows * width > len(memory):
            memory = torch.empty(rows * width, dtype=torch.float32, device=self.device)
        return weight.forward_float32(x, memory[: rows * width].view(rows, width))

    def embedding(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """token_ids int32[T] -> new [T, E]."""
        return embedding(token_ids, table)

    def take_rows(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """x [T, ...], rows int32[R] -> new [R, ...]."""
        return x.index_select(0, rows)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Norm of x, or of residual += x."""
        return rms_norm(x, weight, eps, residual)

    def layer_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        eps: float,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Norm of x, or of residual += x, mean taken off."""
        return layer_norm(x, weight, bias, eps, residual)

    def gated_activation(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """gate_up [T, 2 F] -> new [T, F]."""
        return gated_activation(gate_up, activation)

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
        assert isinstance(step, CudaStep)
        queries = rope_kv_store(qkv, step.positions, step.slot_mapping, pool.blocks, layer, rope, norm)
        if step.marks is not None and step.rows is not None:
            step.marks.stored(layer, step.rows)
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
        """Leading rows."""
        assert isinstance(step, CudaStep)
        self.attention(pool).decode(q, step, layer, shape, out)

    def attention_prefill(
        self,
        q: torch.Tensor,
        step: Step,
        pool: KVPool,
        layer: int,
        shape: AttentionShape,
        out: torch.Tensor,
    ) -> None:
        """Chunks."""
        assert isinstance(step, CudaStep)
        self.attention(pool).prefill(q, step, layer, shape, out)

    def block_copy(self, pool: KVPool, src: Sequence[int], dst: Sequence[int]) -> None:
        """All in one launch."""
        both = self.upload(torch.tensor([src, dst], dtype=torch.int32), torch.int32)
        block_copy(pool.blocks, pool.blocks, both[0], both[1])
