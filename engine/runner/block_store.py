"""Host memory for blocks of a pool that lies where the host computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from engine.backends.base import KVPool
from engine.step import SchedulerOutput


class BlockStore(Protocol):
    """Slots of host memory, a block each, beside one pool.

    A step's saves read what all steps before it have written, and may run beside its rows; its
    loads are done before its copies and rows. A slot is not loaded in the step that saves it, nor
    saved in the step that loads it.
    """

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        """Copy blocks to slots, one to one. Modifies the slots."""
        ...

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        """Copy slots to blocks, one to one. Modifies the blocks."""
        ...


class PlainBlockStore:
    """Copies at once; memory is taken from the system as slots are first used."""

    def __init__(self, pool: KVPool, num_slots: int) -> None:
        self._blocks = pool.blocks
        self._slots = torch.empty((num_slots, *pool.blocks.shape[1:]), dtype=pool.blocks.dtype)

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        """Copy blocks to slots."""
        self._slots[list(slots)] = self._blocks[list(block_ids)]

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        """Copy slots to blocks."""
        self._blocks[list(block_ids)] = self._slots[list(slots)]


def move_blocks(output: SchedulerOutput, store: BlockStore) -> None:
    """Make a step's copies to the host and back, of cache group 0."""
    if output.swap_outs:
        store.save([out.block_id for out in output.swap_outs], [out.slot for out in output.swap_outs])
    if output.swap_ins:
        store.load([swap.slot for swap in output.swap_ins], [swap.block_id for swap in output.swap_ins])
