"""Shared memory, and the transport that writes into a receiver's mapped pool.

`multiprocessing.shared_memory` is not used: its resource tracker unlinks memory that
other processes still use.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence

import numpy as np

from kvtransfer.copier import NUM_COPY_THREADS
from kvtransfer.errors import SharedMemoryError
from kvtransfer.host import SHM_DIR
from kvtransfer.locked_file import LockedFile, path_of
from kvtransfer.region import Blocks, Region, RegionFacts
from kvtransfer.runs import merge_runs

# Less is copied before a second thread is awake.
_MIN_PIECE_BYTES = 512 << 10
# Some 50 us, for which a released transfer waits.
_MAX_BATCH_BYTES = 512 << 10


class SharedMemory:
    """Memory that other processes of this host can map by name.

    Attributes:
        memory: uint8, writable, zeroed.
        name: what a `Region` gives as `shm_name`.
    """

    def __init__(self, file: LockedFile, mapping: mmap.mmap) -> None:
        self.name = file.name
        self.memory = memoryview(mapping)
        self._file = file
        self._mapping = mapping

    def close(self) -> None:
        """Unlink the file and give up the memory; idempotent.

        Where arrays still view the memory, it goes when they do; peers that have it
        mapped keep their mappings.
        """
        self._file.close()
        try:
            self.memory.release()
            self._mapping.close()
        except BufferError:
            pass


def allocate_shared(name_hint: str, num_bytes: int) -> SharedMemory:
    """Allocate zeroed shared memory, all of it at once.

    Also removes what dead processes left behind. If this process dies, the next
    allocation of any process on the host does so for it.

    Args:
        name_hint: becomes part of the name.
        num_bytes: >= 1.
    Raises:
        SharedMemoryError: too little room; the message names what is asked for and what is free.
    """
    if num_bytes < 1:
        raise SharedMemoryError(f"num_bytes must be at least 1, not {num_bytes}")
    file = LockedFile(name_hint)
    try:
        # A sparse file would be granted now and kill the process with SIGBUS later.
        os.posix_fallocate(file.fd, 0, num_bytes)
        mapping = mmap.mmap(file.fd, num_bytes)
    except (OSError, OverflowError, ValueError) as error:
        file.close()
        raise SharedMemoryError(_describe_failure(error, num_bytes)) from error
    return SharedMemory(file, mapping)


def attach_shared(facts: RegionFacts) -> Blocks:
    """Map another process's region, and touch it, so that no transfer pays for page faults.

    Returns:
        uint8[num_blocks, block_bytes], writable; unmapped when the last view goes.
    Raises:
        SharedMemoryError: the file is gone, not readable, or too small.
    """
    path = path_of(facts.shm_name)
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SharedMemoryError(f"cannot open {path}: {error.strerror}") from error
    try:
        size = os.fstat(fd).st_size
        if size < facts.num_bytes:
            raise SharedMemoryError(f"{path} has {size} bytes, its owner announced {facts.num_bytes}")
        mapping = mmap.mmap(fd, facts.num_bytes)
    finally:
        os.close(fd)
    flat: Blocks = np.frombuffer(mapping, dtype=np.uint8)
    np.bitwise_or.reduce(flat[:: mmap.PAGESIZE])  # unlike MAP_POPULATE, this lets go of the GIL
    return flat.reshape(facts.num_blocks, facts.block_bytes)


class SharedMemoryWriter:
    """Copies blocks into a receiver's pool; a `DirectWriter`."""

    def __init__(self, regions: Sequence[Region], receiver_regions: Sequence[RegionFacts]) -> None:
        """Map the receiver's regions, but for those that both have.

        Raises:
            SharedMemoryError: a region cannot be mapped.
        """
        self._sources = [region.blocks() for region in regions]
        self.batch_blocks = max(1, _MAX_BATCH_BYTES // max(region.block_bytes for region in regions))
        self._targets = [
            mine if region.facts.is_same_memory(facts) else attach_shared(facts)
            for mine, region, facts in zip(self._sources, regions, receiver_regions, strict=True)
        ]

    def piece_blocks(self, num_blocks: int) -> int:
        """All threads copy, if there is enough for them."""
        smallest = min(int(blocks.shape[1]) for blocks in self._sources)
        return max(-(-num_blocks // NUM_COPY_THREADS), -(-_MIN_PIECE_BYTES // smallest))

    def write(
        self,
        group: int,
        target_block_ids: Sequence[int],
        source_block_ids: Sequence[int],
        part: range | None = None,
    ) -> int:
        """Copy blocks, run by run; in place when this returns. Lets go of the GIL once a run."""
        targets, sources = self._targets[group], self._sources[group]
        bytes_of = slice(None) if part is None else slice(part.start, part.stop)
        moved = 0
        for run in merge_runs(target_block_ids, source_block_ids):
            if targets is not sources or run.target != run.source:
                source = sources[run.source : run.source + run.num_blocks, bytes_of]
                np.copyto(targets[run.target : run.target + run.num_blocks, bytes_of], source)
                moved += source.nbytes
        return moved

    def close(self) -> None:
        """Give up the mappings."""
        self._targets.clear()
        self._sources.clear()


def _describe_failure(error: Exception, num_bytes: int) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
        stat = os.statvfs(SHM_DIR)
        return (
            f"{num_bytes} bytes of shared memory are needed, {SHM_DIR} has {stat.f_bavail * stat.f_frsize} "
            f"free of {stat.f_blocks * stat.f_frsize}; use a smaller KV pool, or a larger mount "
            "(containers: --shm-size)"
        )
    return f"cannot allocate {num_bytes} bytes of shared memory: {error}"
