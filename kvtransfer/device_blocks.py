"""GPU blocks staged through pinned host memory, for transports that send frames."""

from __future__ import annotations

import ctypes

from kvtransfer.copy_batch import Copy
from kvtransfer.cuda_ipc import CopyStream, PinnedBuffer
from kvtransfer.frames import Payload
from kvtransfer.region import DeviceMemory


class DeviceBlocks:
    """A `BlockStore` on GPU memory; takes a stream and one block of pinned memory at first use."""

    def __init__(self, memory: DeviceMemory, num_blocks: int, block_bytes: int) -> None:
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self._memory = memory
        self._stream: CopyStream | None = None
        self._staging: PinnedBuffer | None = None

    def read(self, block_id: int) -> Payload:
        """Copy one block to the host; the bytes are the caller's."""
        stream, staging = self._open()
        stream.copy([Copy(staging.pointer, self._address(block_id), self.block_bytes)])
        return ctypes.string_at(staging.pointer, self.block_bytes)

    def write(self, block_id: int, payload: Payload) -> None:
        """Copy one block to the GPU."""
        stream, staging = self._open()
        staging.view[: self.block_bytes] = memoryview(payload).cast("B")
        stream.copy([Copy(self._address(block_id), staging.pointer, self.block_bytes)])

    def close(self) -> None:
        """Give up the stream and the pinned memory."""
        if self._stream is not None and self._staging is not None:
            self._stream.close()
            self._staging.close()
        self._stream = self._staging = None

    def _open(self) -> tuple[CopyStream, PinnedBuffer]:
        if self._stream is None or self._staging is None:
            self._stream = CopyStream(self._memory.ordinal)
            self._staging = PinnedBuffer(self._memory.ordinal, self.block_bytes)
        return self._stream, self._staging

    def _address(self, block_id: int) -> int:
        return self._memory.pointer + block_id * self.block_bytes
