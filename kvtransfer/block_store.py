"""Blocks one at a time, through this process's hands: for transports that send frames."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from kvtransfer.frames import Payload
from kvtransfer.region import DeviceMemory, Region


class BlockStore(Protocol):
    """Reads and writes the blocks of one region; used by one thread at a time.

    Attributes:
        num_blocks, block_bytes: of the region.
    """

    num_blocks: int
    block_bytes: int

    def read(self, block_id: int) -> Payload:
        """Get one block's bytes; they may be a view, so the block must not change meanwhile."""

    def write(self, block_id: int, payload: Payload) -> None:
        """Set one block's bytes; they are in place when this returns."""

    def close(self) -> None:
        """Give up views and buffers."""


class HostBlocks:
    """A `BlockStore` on host memory."""

    def __init__(self, region: Region) -> None:
        self.num_blocks = region.num_blocks
        self.block_bytes = region.block_bytes
        self._blocks = region.blocks()

    def read(self, block_id: int) -> Payload:
        """View one block."""
        view: memoryview = self._blocks[block_id].data
        return view

    def write(self, block_id: int, payload: Payload) -> None:
        """Copy into one block."""
        np.copyto(self._blocks[block_id], np.frombuffer(payload, dtype=np.uint8))

    def close(self) -> None:
        """Give up the view, so that the memory can go."""
        self._blocks = self._blocks[:0].copy()


def open_blocks(region: Region) -> BlockStore:
    """Make the store that fits a region's memory."""
    if isinstance(region.memory, DeviceMemory):
        # Imported here because a process without GPU memory must not need CuPy.
        from kvtransfer.device_blocks import DeviceBlocks

        return DeviceBlocks(region.memory, region.num_blocks, region.block_bytes)
    return HostBlocks(region)
