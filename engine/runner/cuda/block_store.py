"""Pinned host memory for blocks of a pool on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.backends.base import KVPool


class PinnedBlockStore:
    """Saves run on a stream of their own beside the step's rows, loads on the runner's before them."""

    def __init__(self, pool: KVPool, num_slots: int) -> None:
        """Take the memory; call `join` at the end of each step that saves."""
        self._blocks = pool.blocks
        shape = (num_slots, *pool.blocks.shape[1:])
        self._slots = torch.empty(shape, dtype=pool.blocks.dtype, pin_memory=num_slots > 0)
        self._stream = torch.cuda.Stream(pool.blocks.device)  # type: ignore[no-untyped-call]

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        """Copy blocks to slots, after all that the current stream was given so far."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for block_id, slot in zip(block_ids, slots, strict=True):
                self._slots[slot].copy_(self._blocks[block_id], non_blocking=True)

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        """Copy slots to blocks, on the current stream."""
        for slot, block_id in zip(slots, block_ids, strict=True):
            self._blocks[block_id].copy_(self._slots[slot], non_blocking=True)

    def join(self) -> None:
        """Let the current stream wait for the saves, so that the step is over when they are."""
        torch.cuda.current_stream().wait_stream(self._stream)
