"""A model's first steps: they load its kernels, show what cannot run, and take the memory of a full step."""

from __future__ import annotations

import numpy as np
import torch

from engine.backends.base import KVPool
from engine.backends.batch import BatchMetadata
from engine.backends.cuda.backend import CudaBackend
from engine.config import EngineConfig
from engine.kv.layout import CacheGroup
from engine.models.transformer import Transformer


@torch.inference_mode()
def warm_up(
    config: EngineConfig, model: Transformer, backend: CudaBackend, group: CacheGroup, context_length: int
) -> int:
    """Run a full step of chunks and one of decode rows over a block of scratch.

    Returns:
        Bytes of device memory that are free afterwards, with all that these steps need set aside; twice with
        graphs, which have memory of their own.
    Raises:
        UnsupportedShapeError: a kernel cannot do what the model needs.
    """
    backend.reserve_logits(config.max_running, model.lm_head.out_features)
    dtype, before = backend.dtype, torch.cuda.memory_reserved(backend.device)
    scratch = KVPool(group, torch.zeros(1, *group.shape, dtype=dtype, device=backend.device), None)
    lengths = [context_length] * (config.max_step_tokens // context_length)
    if config.max_step_tokens % context_length:
        lengths.append(config.max_step_tokens % context_length)
    for chunks in (lengths[: config.max_running], [1] * min(config.max_running, config.max_step_tokens)):
        step = backend.begin(_metadata(chunks, group.block_size), scratch)
        num_tokens = sum(chunks)
        tokens = torch.zeros(num_tokens, dtype=torch.int32, device=backend.device)
        wanted = torch.arange(min(num_tokens, config.max_running), dtype=torch.int32, device=backend.device)
        model.forward(tokens, step, scratch, wanted)
    torch.cuda.synchronize()
    backend.forget(scratch)
    free, _ = torch.cuda.mem_get_info(backend.device)
    of_graphs = torch.cuda.memory_reserved(backend.device) - before if config.graphs else 0
    return free - of_graphs


def _metadata(lengths: list[int], block_size: int) -> BatchMetadata:
    """Rows that all write into block 0."""
    count = np.array(lengths, np.int32)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return BatchMetadata(
        num_decodes=len(lengths) if max(lengths) == 1 else 0,
        positions=positions,
        slot_mapping=positions % np.int32(block_size),
        cu_seqlens_q=np.concatenate(([0], np.cumsum(count))).astype(np.int32),
        context_lens=count,
        block_tables=np.zeros((len(lengths), -(-max(lengths) // block_size)), np.int32),
    )
