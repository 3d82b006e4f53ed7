"""Registered memory: equal blocks of bytes in one allocation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvtransfer.errors import FingerprintMismatchError, InvalidTransferError

CPU = "cpu"
Blocks = npt.NDArray[np.uint8]


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
    """

    group: str
    block_bytes: int
    num_blocks: int
    device: str
    fingerprint: str
    shm_name: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.block_bytes * self.num_blocks


@dataclass(frozen=True, slots=True)
class Region:
    """Registered memory of this process; fields as in `RegionFacts`.

    Attributes:
        memory: the blocks, contiguous, `num_blocks * block_bytes` bytes.
    Raises:
        InvalidTransferError: sizes do not agree, or the memory is not contiguous.
    """

    group: str
    block_bytes: int
    num_blocks: int
    device: str
    fingerprint: str
    memory: memoryview
    shm_name: str = ""

    def __post_init__(self) -> None:
        if self.block_bytes < 1 or self.num_blocks < 1:
            raise InvalidTransferError("region", f"{self.num_blocks} blocks of {self.block_bytes} bytes")
        expected = self.block_bytes * self.num_blocks
        if self.device == CPU and (self.memory.nbytes != expected or not self.memory.c_contiguous):
            raise InvalidTransferError(
                "region.memory", f"{self.memory.nbytes} bytes given, {expected} contiguous ones needed"
            )

    @property
    def facts(self) -> RegionFacts:
        """The region without its memory."""
        return RegionFacts(
            self.group, self.block_bytes, self.num_blocks, self.device, self.fingerprint, self.shm_name
        )

    def blocks(self) -> Blocks:
        """View the memory as uint8[num_blocks, block_bytes]; a view, not a copy."""
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
