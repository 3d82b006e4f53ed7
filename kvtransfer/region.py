"""Registered memory: equal blocks of bytes in one allocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from kvtransfer.errors import FingerprintMismatchError, InvalidTransferError

CPU = "cpu"
Blocks = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class CudaExport:
    """GPU memory that other processes can open; equal exactly for the same allocation.

    Attributes:
        handle: CUDA IPC handle of the whole allocation, `HANDLE_BYTES` bytes.
        pid: process that owns the allocation.
        pid_namespace: of that process; see `host.pid_namespace`.
    """

    HANDLE_BYTES: ClassVar[int] = 64
    handle: bytes
    pid: int
    pid_namespace: int


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one GPU, as this process sees it; the allocation's first byte.

    Attributes:
        pointer: device address.
        num_bytes: bytes that may be used.
        ordinal: this process's number of the GPU.
        export: how peers open it; None: they cannot.
    """

    pointer: int
    num_bytes: int
    ordinal: int
    export: CudaExport | None = None


@dataclass(frozen=True, slots=True)
class RegionFacts:
    """What a peer must know of a region; travels as `KvRegion`.

    Attributes:
        group: cache group, such as "attention".
        block_bytes: bytes a block, >= 1.
        num_blocks: blocks, >= 1.
        device: "cpu" or "cuda:<uuid>".
        fingerprint: layout fingerprint; both sides must agree.
        shm_name: name of the shared-memory file; empty: not shareable.
        export: GPU memory that peers can open; None: on a CPU, or not shareable.
    """

    group: str
    block_bytes: int
    num_blocks: int
    device: str
    fingerprint: str
    shm_name: str = ""
    export: CudaExport | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.block_bytes * self.num_blocks

    def is_same_memory(self, other: RegionFacts) -> bool:
        """Tell whether two workers of one host have the same blocks, under the same ids."""
        same_file = bool(self.shm_name) and self.shm_name == other.shm_name
        return same_file or (self.export is not None and self.export == other.export)


@dataclass(frozen=True, slots=True)
class Region:
    """Registered memory of this process; fields as in `RegionFacts`.

    Attributes:
        memory: the blocks, contiguous, `num_blocks * block_bytes` bytes (on a GPU: at least).
    Raises:
        InvalidTransferError: sizes or device do not agree, or the memory is not contiguous.
    """

    group: str
    block_bytes: int
    num_blocks: int
    device: str
    fingerprint: str
    memory: memoryview | DeviceMemory
    shm_name: str = ""

    def __post_init__(self) -> None:
        if self.block_bytes < 1 or self.num_blocks < 1:
            raise InvalidTransferError("region", f"{self.num_blocks} blocks of {self.block_bytes} bytes")
        expected, memory = self.block_bytes * self.num_blocks, self.memory
        if isinstance(memory, memoryview) != (self.device == CPU):
            raise InvalidTransferError("region.device", f"{self.device!r} with {type(memory).__name__}")
        if isinstance(memory, DeviceMemory):
            given, fits = memory.num_bytes, memory.num_bytes >= expected
        else:
            given, fits = memory.nbytes, memory.nbytes == expected and memory.c_contiguous
        if not fits:
            raise InvalidTransferError(
                "region.memory", f"{given} bytes given, {expected} contiguous ones needed"
            )

    @property
    def facts(self) -> RegionFacts:
        """The region without its memory."""
        export = self.memory.export if isinstance(self.memory, DeviceMemory) else None
        return RegionFacts(
            self.group,
            self.block_bytes,
            self.num_blocks,
            self.device,
            self.fingerprint,
            self.shm_name,
            export,
        )

    def blocks(self) -> Blocks:
        """View host memory as uint8[num_blocks, block_bytes]; a view, not a copy."""
        assert isinstance(self.memory, memoryview), "GPU memory is read through `block_store`"
        flat: Blocks = np.frombuffer(self.memory, dtype=np.uint8)
        return flat.reshape(self.num_blocks, self.block_bytes)


def check_same_layout(mine: list[RegionFacts], theirs: list[RegionFacts], worker_id: str) -> None:
    """Compare the cache groups of two peers, in order.

    Raises:
        FingerprintMismatchError: groups, block sizes or fingerprints differ.
    """
    my_groups, their_groups = [r.group for r in mine], [r.group for r in theirs]
    if my_groups != their_groups:
        raise FingerprintMismatchError(
            f"worker {worker_id!r} has cache groups {their_groups}, this one {my_groups}"
        )
    for ours, other in zip(mine, theirs, strict=True):
        if ours.fingerprint != other.fingerprint or ours.block_bytes != other.block_bytes:
            raise FingerprintMismatchError(
                f"worker {worker_id!r}, group {ours.group!r}: fingerprint {other.fingerprint!r} with "
                f"{other.block_bytes} bytes a block, this worker has {ours.fingerprint!r} with "
                f"{ours.block_bytes}"
            )
