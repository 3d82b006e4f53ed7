"""Where a vault's memory is: one allocation a cache group, and one for the weights."""

from __future__ import annotations

from typing import Protocol

from engine.borrowed import WeightsArena
from kvtransfer.cuda_ipc import DeviceAllocation, allocate_device
from kvtransfer.region import CPU, RegionFacts
from kvtransfer.shared_memory import SharedMemory, allocate_shared


class ExportedMemory(Protocol):
    """An allocation that workers can map."""

    def facts(self, group: str, block_bytes: int, num_blocks: int, fingerprint: str) -> RegionFacts:
        """What a worker must know to map it."""

    def arena(self) -> WeightsArena | None:
        """Where weights go; None: not in this kind of memory."""

    def close(self) -> None:
        """Give the memory up; workers that have it mapped must be gone."""


class HostMemory:
    """Shared memory."""

    def __init__(self, name: str, num_bytes: int) -> None:
        self._memory: SharedMemory = allocate_shared(f"vault-{name}", num_bytes)

    def facts(self, group: str, block_bytes: int, num_blocks: int, fingerprint: str) -> RegionFacts:
        """By the name of its file."""
        return RegionFacts(group, block_bytes, num_blocks, CPU, fingerprint, self._memory.name)

    def arena(self) -> WeightsArena | None:
        """Each worker packs its own."""
        return None

    def close(self) -> None:
        """Unlink the file."""
        self._memory.close()


class GpuMemory:
    """Memory of the first GPU."""

    def __init__(self, name: str, num_bytes: int) -> None:
        self._allocation: DeviceAllocation = allocate_device(num_bytes)
        self._num_bytes = num_bytes

    def facts(self, group: str, block_bytes: int, num_blocks: int, fingerprint: str) -> RegionFacts:
        """By its CUDA IPC handle."""
        device, export = self._allocation.device, self._allocation.memory.export
        return RegionFacts(group, block_bytes, num_blocks, device, fingerprint, export=export)

    def arena(self) -> WeightsArena | None:
        """All of it."""
        return WeightsArena(self._allocation.memory.pointer, self._num_bytes)

    def close(self) -> None:
        """Free it."""
        self._allocation.close()


def allocate(backend: str, name: str, num_bytes: int) -> ExportedMemory:
    """Take memory of a backend's kind, and make it mappable.

    Raises:
        SharedMemoryError, CudaError: too little, with what is there.
    """
    return GpuMemory(name, num_bytes) if backend == "cuda" else HostMemory(name, num_bytes)
