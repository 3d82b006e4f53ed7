"""Memory that tests can look into, on the host or on a GPU, and where a test wants it."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pytest

from kvtransfer.block_store import open_blocks
from kvtransfer.cuda_ipc import allocate_device, num_gpus
from kvtransfer.region import Blocks, Region
from kvtransfer.select import DIRECT
from kvtransfer.shared_memory import allocate_shared


@dataclass(frozen=True)
class Setup:
    """A transport, and the GPUs of sender and receiver; None: the host."""

    transport: str
    sender_gpu: int | None = None
    receiver_gpu: int | None = None

    @property
    def is_direct(self) -> bool:
        return self.transport in DIRECT


def on_gpus(transport: str, sender_gpu: int, receiver_gpu: int) -> Any:
    """A test parameter that is skipped where the GPUs are missing; see `require_gpus`."""
    name = f"{transport}-gpu{sender_gpu}-gpu{receiver_gpu}"
    return pytest.param(Setup(transport, sender_gpu, receiver_gpu), id=name, marks=pytest.mark.gpu)


def on_host(transport: str) -> Any:
    return pytest.param(Setup(transport), id=transport)


def require_gpus(setup: Setup) -> None:
    needed = 1 + max((gpu for gpu in (setup.sender_gpu, setup.receiver_gpu) if gpu is not None), default=-1)
    if needed > 0 and num_gpus() < needed:
        pytest.skip(f"needs {needed} NVIDIA GPU(s), this machine has {num_gpus()}")
    for gpu in range(needed):
        _warm_up(gpu)


@functools.cache
def _warm_up(gpu: int) -> None:
    # A GPU's first use takes a second, in which a test's short lease would run out.
    allocate_device(1, gpu).close()


class GpuBlocks:
    """Looks like uint8[num_blocks, block_bytes]; every access copies."""

    def __init__(self, region: Region) -> None:
        self._store = open_blocks(region)
        self._ids = np.arange(region.num_blocks)
        self._lock = threading.Lock()

    def __getitem__(self, key: Any) -> Blocks:
        ids = self._ids[key]
        with self._lock:
            rows = [np.frombuffer(self._store.read(int(i)), dtype=np.uint8) for i in np.atleast_1d(ids)]
        return rows[0] if ids.ndim == 0 else np.stack(rows)

    def __setitem__(self, key: Any, value: Any) -> None:
        ids = np.atleast_1d(self._ids[key])
        rows = np.broadcast_to(np.asarray(value, dtype=np.uint8), (len(ids), self._store.block_bytes))
        with self._lock:
            for i, row in zip(ids, rows, strict=True):
                self._store.write(int(i), np.ascontiguousarray(row).data)

    def close(self) -> None:
        self._store.close()


class Pool(Protocol):
    """A region and its blocks."""

    region: Region
    blocks: Any

    def close(self) -> None: ...


class HostPool:
    def __init__(self, region: Region, close_memory: Any) -> None:
        self.region = region
        self.blocks = region.blocks()
        self._close_memory = close_memory

    def close(self) -> None:
        del self.blocks
        self._close_memory()


class GpuPool:
    def __init__(self, group: str, block_bytes: int, num_blocks: int, fingerprint: str, gpu: int) -> None:
        self._allocation = allocate_device(block_bytes * num_blocks, gpu)
        device, memory = self._allocation.device, self._allocation.memory
        self.region = Region(group, block_bytes, num_blocks, device, fingerprint, memory)
        self.blocks = GpuBlocks(self.region)

    def close(self) -> None:
        self.blocks.close()
        self._allocation.close()


def make_pool(
    group: str,
    block_bytes: int,
    num_blocks: int,
    *,
    gpu: int | None,
    shared: bool = False,
    fingerprint: str = "fp",
) -> Pool:
    """Memory of unknown content; `shared` is for the host."""
    if gpu is not None:
        return GpuPool(group, block_bytes, num_blocks, fingerprint, gpu)
    num_bytes = block_bytes * num_blocks
    if not shared:
        private = memoryview(bytearray(num_bytes))
        region = Region(group, block_bytes, num_blocks, "cpu", fingerprint, private)
        return HostPool(region, lambda: None)
    memory = allocate_shared("test", num_bytes)
    region = Region(group, block_bytes, num_blocks, "cpu", fingerprint, memory.memory, memory.name)
    return HostPool(region, memory.close)
