"""A step's metadata as the CPU kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.backends.base import AttentionShape
from engine.backends.batch import BatchMetadata
from engine.backends.cpu.arrays import FloatArray, IntArray
from engine.backends.cpu.attention_decode import SPLIT_TOKENS


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """What attention_decode runs for one window size.

    Attributes:
        first_tokens: int32[B], first token that each row sees.
        work: int32[W, 2], (row, split), all splits of a row side by side.
        max_splits: most splits of a row.
        num_tokens: seen over all rows.
    """

    first_tokens: IntArray
    work: IntArray
    max_splits: int
    num_tokens: int


class CpuStep:
    """Metadata, and what the layers of one step share."""

    def __init__(self, metadata: BatchMetadata) -> None:
        self.metadata = metadata
        self.num_decodes = metadata.num_decodes
        self.num_tokens = metadata.num_tokens
        self.has_chunks = metadata.num_decodes < metadata.num_tokens
        self._decode_work: dict[int | None, DecodeWork] = {}
        self._partials: FloatArray | None = None

    def decode_work(self, window: int | None) -> DecodeWork:
        """The work map of a window size, made on first use."""
        found = self._decode_work.get(window)
        if found is None:
            found = _decode_work(self.metadata.context_lens[: self.num_decodes], window)
            self._decode_work[window] = found
        return found

    def partials(self, work: DecodeWork, shape: AttentionShape) -> FloatArray:
        """Scratch of attention_decode: float32[B, max_splits, H_kv, G, D + 2]."""
        group = shape.num_heads // shape.num_kv_heads
        wanted = (self.num_decodes, work.max_splits, shape.num_kv_heads, group, shape.head_dim + 2)
        if self._partials is None or self._partials.shape != wanted:
            self._partials = np.empty(wanted, np.float32)
        return self._partials


def _decode_work(context_lens: IntArray, window: int | None) -> DecodeWork:
    first = np.zeros_like(context_lens) if window is None else np.maximum(context_lens - np.int32(window), 0)
    splits = (context_lens - 1) // SPLIT_TOKENS - first // SPLIT_TOKENS + 1
    rows = np.repeat(np.arange(len(splits), dtype=np.int32), splits)
    starts = np.cumsum(splits) - splits
    index = np.arange(len(rows), dtype=np.int32) - np.repeat(starts, splits)
    work = np.stack((rows, index.astype(np.int32)), axis=1)
    return DecodeWork(first.astype(np.int32), work, int(splits.max()), int((context_lens - first).sum()))
