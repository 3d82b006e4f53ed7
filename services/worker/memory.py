"""Where a worker's KV blocks are: in memory of its own, or in a vault's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.backends.base import PoolMemory
from engine.borrowed import Borrowed, WeightsArena
from engine.build import Allocate
from kvtransfer.cuda_ipc import DeviceAllocation, allocate_device, open_device
from kvtransfer.errors import CudaError
from kvtransfer.region import CPU, DeviceMemory, RegionFacts
from kvtransfer.shared_memory import SharedMemory, allocate_shared, attach_shared
from services.worker.vault_lease import VaultLease


@dataclass(frozen=True, slots=True)
class Place:
    """Where the blocks of one cache group are; fields as in `kvtransfer.region.Region`."""

    device: str
    memory: memoryview | DeviceMemory
    shm_name: str = ""


class WorkerMemory(Protocol):
    """What an engine is built on.

    Attributes:
        allocate: gives the engine memory; None: it is to take its own, which nobody can map.
        borrowed: memory that is there already; None: none.
        places: where each group's blocks are, once the engine is built; none of those it took itself.
    """

    allocate: Allocate | None
    borrowed: Borrowed | None
    places: dict[str, Place]

    def close(self) -> None:
        """Give the memory up; nothing reads or writes it any more."""


class PrivateMemory:
    """The engine's own."""

    def __init__(self) -> None:
        self.allocate: Allocate | None = None
        self.borrowed: Borrowed | None = None
        self.places: dict[str, Place] = {}

    def close(self) -> None:
        """It goes with the engine."""


class SharedHostMemory:
    """Shared memory of this worker."""

    def __init__(self, worker_id: str) -> None:
        self.allocate: Allocate | None = self._allocate
        self.borrowed: Borrowed | None = None
        self.places: dict[str, Place] = {}
        self._worker_id = worker_id
        self._files: list[SharedMemory] = []

    def close(self) -> None:
        """Unlink the files."""
        for file in self._files:
            file.close()

    def _allocate(self, group: str, num_bytes: int) -> PoolMemory:
        file = allocate_shared(f"{self._worker_id}-{group}", num_bytes)
        self._files.append(file)
        self.places[group] = Place(CPU, file.memory, file.name)
        return file.memory


class GpuMemory:
    """Memory of this worker's GPU, exported."""

    def __init__(self) -> None:
        self.allocate: Allocate | None = self._allocate
        self.borrowed: Borrowed | None = None
        self.places: dict[str, Place] = {}
        self._allocations: list[DeviceAllocation] = []

    def close(self) -> None:
        """Free it."""
        for allocation in self._allocations:
            allocation.close()

    def _allocate(self, group: str, num_bytes: int) -> PoolMemory:
        allocation = allocate_device(num_bytes)
        self._allocations.append(allocation)
        self.places[group] = Place(allocation.device, allocation.memory)
        return allocation.memory.pointer


class VaultMemory:
    """A vault's pool, and its weights where it has them."""

    def __init__(self, lease: VaultLease) -> None:
        """Map everything.

        Raises:
            SharedMemoryError, CudaError: it cannot be mapped; says why.
        """
        self.allocate: Allocate | None = None
        self.places: dict[str, Place] = {}
        self._opened: list[DeviceAllocation] = []
        pools: dict[str, PoolMemory] = {}
        weights: WeightsArena | None = None
        try:
            for facts in lease.pool:
                place = self.places[facts.group] = self._map(facts)
                memory = place.memory
                pools[facts.group] = memory.pointer if isinstance(memory, DeviceMemory) else memory
            if lease.weights is not None:
                memory = self._map(lease.weights).memory
                assert isinstance(memory, DeviceMemory), "weights in host memory"
                weights = WeightsArena(memory.pointer, memory.num_bytes)
        except BaseException:
            self.close()
            raise
        self.borrowed: Borrowed | None = Borrowed(
            pools, lease.pool[0].num_blocks, lease.first_block, lease.num_blocks, weights
        )

    def close(self) -> None:
        """Unmap what is on the GPU; host memory goes with its views."""
        while self._opened:
            self._opened.pop().close()

    def _map(self, facts: RegionFacts) -> Place:
        if facts.device == CPU:
            blocks = attach_shared(facts)
            return Place(CPU, blocks.reshape(-1).data, facts.shm_name)
        if facts.export is None:
            raise CudaError(f"the vault exports no CUDA IPC handle of {facts.group!r}")
        allocation = open_device(facts.export, facts.num_bytes, facts.device)
        self._opened.append(allocation)
        return Place(facts.device, allocation.memory)
