"""Runs a transformer step by step over a shuffled, poisoned pool, as a scheduler would."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from engine.backends.base import Backend
from engine.backends.cpu.backend import CpuBackend
from engine.kv.layout import CacheGroup, CacheKind
from engine.models.architecture import Architecture
from engine.models.build import build_transformer
from engine.models.load import open_model
from engine.request import Request
from engine.runner.batch import batch_metadata, sample_rows, token_ids
from engine.sampling_params import SamplingParams
from engine.step import ScheduledRow


def create_group(architecture: Architecture, block_size: int, dtype: str = "float32") -> CacheGroup:
    shape = (architecture.num_layers, 2, architecture.num_kv_heads, block_size, architecture.head_dim)
    layers = tuple(range(architecture.num_layers))
    return CacheGroup("attention", CacheKind.ATTENTION, layers, block_size, shape, dtype)


@dataclass
class ModelSteps:
    """A model over a pool of `num_blocks` blocks that hold NaN until a step stores into them."""

    path: str
    num_blocks: int = 64
    block_size: int = 16
    backend: Backend = field(default_factory=CpuBackend)

    def __post_init__(self) -> None:
        files = open_model(self.path)
        self.architecture = files.architecture
        self.model = build_transformer(
            files.architecture, files.source, self.backend, files.architecture.max_positions
        )
        self.pool = self.backend.allocate_pool(
            create_group(files.architecture, self.block_size, str(self.backend.dtype).removeprefix("torch.")),
            self.num_blocks,
            None,
        )
        self.pool.blocks.fill_(float("nan"))
        self._free = list(range(self.num_blocks))
        random.Random(5).shuffle(self._free)

    def request(self, tokens: Sequence[int], max_tokens: int) -> Request:
        """A request with blocks for `max_tokens`."""
        num_blocks = -(-max_tokens // self.block_size)
        blocks, self._free = self._free[:num_blocks], self._free[num_blocks:]
        assert len(blocks) == num_blocks
        return Request(str(id(tokens)), list(tokens), len(tokens), SamplingParams(), block_ids=[blocks])

    @torch.inference_mode()
    def step(self, parts: Sequence[tuple[Request, int]]) -> list[torch.Tensor]:
        """Run the next n tokens of each request; logits [V] after the last of each."""
        rows = [ScheduledRow(request, request.num_computed_tokens, n, True) for request, n in parts]
        step = self.backend.begin(batch_metadata(rows, 0, self.block_size), self.pool)
        tokens = self.backend.upload(torch.from_numpy(token_ids(rows)), torch.int32)
        wanted = self.backend.upload(torch.from_numpy(sample_rows(rows)), torch.int32)
        logits = self.model.forward(tokens, step, self.pool, wanted).clone()
        for request, n in parts:
            request.num_computed_tokens += n
        return list(logits)
