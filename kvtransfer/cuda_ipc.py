"""GPU memory that peers can open, and the transport that writes into it.

    owner     allocate_device -> Region -> its handle goes to peers in `KvRegion`
    sender    CudaIpcWriter opens the handles once, when it connects; then, batch by batch:
              gate -> one asynchronous copy a run of blocks -> wait for the stream -> gate -> PLACED

The copies run on streams of their own, on the copy engines, within one GPU or from GPU to GPU;
no byte passes the host. A copy thread waits for each batch, since the gate may be left only when
nothing is being written any more (ADR 2). The only module of kvtransfer that imports CuPy.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import queue
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, cast

from kvtransfer.copier import NUM_COPY_THREADS
from kvtransfer.errors import CudaError
from kvtransfer.host import pid_namespace
from kvtransfer.region import CudaExport, DeviceMemory, Region, RegionFacts
from kvtransfer.runs import merge_runs

T = TypeVar("T")

# A released transfer waits for the batches under way: 0.7 ms over NVLink, some 10 ms over PCIe.
MAX_BATCH_BYTES = 256 << 20
_GRANULE_BYTES = 2 << 20  # smaller allocations share a page, and a handle would export neighbours
_NON_BLOCKING_STREAM = 1  # does not wait for the default stream, nor that for it
_COPY_DEFAULT = 4  # the pointers say from where to where
_LAZY_PEER_ACCESS = 1

# Allocations of this process, by what peers know of them: a process cannot open its own handle.
_own_exports: dict[CudaExport, DeviceMemory] = {}


class _Runtime(Protocol):
    """What is used of cupy.cuda.runtime; failures are `RuntimeError`s that name CUDA's code."""

    def getDeviceCount(self) -> int: ...  # noqa: N802
    def setDevice(self, ordinal: int) -> None: ...  # noqa: N802
    def deviceCanAccessPeer(self, ordinal: int, peer: int) -> int: ...  # noqa: N802
    def deviceEnablePeerAccess(self, peer: int) -> None: ...  # noqa: N802
    def malloc(self, size: int) -> int: ...
    def free(self, pointer: int) -> None: ...
    def hostAlloc(self, size: int, flags: int) -> int: ...  # noqa: N802
    def freeHost(self, pointer: int) -> None: ...  # noqa: N802
    def ipcGetMemHandle(self, pointer: int) -> bytes: ...  # noqa: N802
    def ipcOpenMemHandle(self, handle: bytes, flags: int) -> int: ...  # noqa: N802
    def ipcCloseMemHandle(self, pointer: int) -> None: ...  # noqa: N802
    def streamCreateWithFlags(self, flags: int) -> int: ...  # noqa: N802
    def streamSynchronize(self, stream: int) -> None: ...  # noqa: N802
    def streamDestroy(self, stream: int) -> None: ...  # noqa: N802
    def memcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> None: ...  # noqa: N802


def _runtime() -> _Runtime:
    try:
        return cast(_Runtime, importlib.import_module("cupy").cuda.runtime)
    except ImportError as error:
        raise CudaError(f"CuPy is missing: install baton[cuda] ({error})") from error


def num_gpus() -> int:
    """Count the GPUs that this process can use; 0 without CuPy or a driver."""
    try:
        return _runtime().getDeviceCount()
    except (CudaError, RuntimeError):
        return 0


def device_name(ordinal: int) -> str:
    """Name a GPU for `Region.device`: "cuda:<uuid>", the same in every process of the host.

    Raises:
        CudaError: there is no such GPU.
    """
    if not 0 <= ordinal < num_gpus():
        raise CudaError(f"GPU {ordinal} is asked for, there are {num_gpus()}")
    raw = ctypes.create_string_buffer(16)
    # CuPy's own answer ends at the first zero byte.
    status = ctypes.CDLL("libcuda.so.1").cuDeviceGetUuid_v2(raw, ctypes.c_int(ordinal))
    if status:
        raise CudaError(f"cuDeviceGetUuid of GPU {ordinal} failed with {status}")
    return f"cuda:{uuid.UUID(bytes=raw.raw)}"


class DeviceAllocation:
    """GPU memory of this process; one a region.

    Attributes:
        memory: what a `Region` takes; `memory.export` is for peers.
        device: what a `Region` gives as `device`.
    """

    def __init__(self, memory: DeviceMemory, device: str) -> None:
        self.memory = memory
        self.device = device
        self._freed = False

    def close(self) -> None:
        """Free the memory; idempotent. Only when no peer has it open: their mappings would dangle."""
        if not self._freed:
            self._freed = True
            if self.memory.export is not None:
                _own_exports.pop(self.memory.export, None)
            _on_gpu(self.memory.ordinal, lambda runtime: runtime.free(self.memory.pointer))


def allocate_device(num_bytes: int, ordinal: int = 0) -> DeviceAllocation:
    """Allocate GPU memory, not zeroed, and export it.

    Args:
        num_bytes: >= 1.
        ordinal: this process's number of the GPU.
    Raises:
        CudaError: no such GPU, too little memory, or it cannot be exported.
    """
    device = device_name(ordinal)

    def allocate(runtime: _Runtime) -> DeviceMemory:
        pointer = runtime.malloc(-(-num_bytes // _GRANULE_BYTES) * _GRANULE_BYTES)
        try:
            handle = runtime.ipcGetMemHandle(pointer)
        except RuntimeError:
            runtime.free(pointer)
            raise
        return DeviceMemory(pointer, num_bytes, ordinal, CudaExport(handle, os.getpid(), pid_namespace()))

    try:
        memory = _on_gpu(ordinal, allocate)
    except RuntimeError as error:
        raise CudaError(f"cannot allocate and export {num_bytes} bytes on GPU {ordinal}: {error}") from error
    assert memory.export is not None
    _own_exports[memory.export] = memory
    return DeviceAllocation(memory, device)


class CopyStream:
    """A stream that copies; used by one thread at a time, whose current GPU it sets."""

    def __init__(self, ordinal: int) -> None:
        self._cuda = _runtime()
        self._ordinal = ordinal
        self._cuda.setDevice(ordinal)
        self._stream = self._cuda.streamCreateWithFlags(_NON_BLOCKING_STREAM)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Queue a copy between two addresses, of any GPU or of pinned host memory."""
        self._cuda.setDevice(self._ordinal)
        self._cuda.memcpyAsync(target, source, num_bytes, _COPY_DEFAULT, self._stream)

    def wait(self) -> None:
        """Wait for what is queued; lets go of the GIL."""
        self._cuda.streamSynchronize(self._stream)

    def close(self) -> None:
        """Destroy the stream."""
        self._cuda.streamDestroy(self._stream)


class PinnedBuffer:
    """Host memory that a GPU copies to and from at full speed.

    Attributes:
        pointer: address.
        view: its bytes.
    """

    def __init__(self, ordinal: int, num_bytes: int) -> None:
        self._cuda = _runtime()
        self._cuda.setDevice(ordinal)
        self.pointer = self._cuda.hostAlloc(num_bytes, 0)
        self.view = memoryview((ctypes.c_ubyte * num_bytes).from_address(self.pointer)).cast("B")

    def close(self) -> None:
        """Free the memory."""
        self.view.release()
        self._cuda.freeHost(self.pointer)


class CudaIpcWriter:
    """Copies blocks into a receiver's GPU memory; a `DirectWriter`."""

    def __init__(self, regions: Sequence[Region], receiver_regions: Sequence[RegionFacts]) -> None:
        """Open the receiver's handles.

        Args:
            regions: this worker's, on one GPU.
            receiver_regions: in the same order.
        Raises:
            CudaError: a handle does not open; the message says whose and why.
        """
        self._memories = [region.memory for region in regions if isinstance(region.memory, DeviceMemory)]
        self._block_bytes = [region.block_bytes for region in regions]
        self._ordinal = self._memories[0].ordinal
        self.batch_blocks = max(1, MAX_BATCH_BYTES // max(self._block_bytes))
        self._opened: list[int] = []
        self._streams: queue.SimpleQueue[CopyStream] = queue.SimpleQueue()

        def open_all(runtime: _Runtime) -> list[int]:
            try:
                targets = [self._open(runtime, facts) for facts in receiver_regions]
                for _ in range(NUM_COPY_THREADS):
                    self._streams.put(CopyStream(self._ordinal))
            except (CudaError, RuntimeError):
                self.close()
                raise
            return targets

        try:
            self._targets = _on_gpu(self._ordinal, open_all)
        except RuntimeError as error:
            raise CudaError(f"GPU {self._ordinal} cannot be used: {error}") from error

    def write(self, group: int, target_block_ids: Sequence[int], source_block_ids: Sequence[int]) -> None:
        """Copy blocks, run by run; in place when this returns."""
        target, source = self._targets[group], self._memories[group].pointer
        size = self._block_bytes[group]
        runs = merge_runs(target_block_ids, source_block_ids)
        if target == source:
            # Both workers use one pool (the vault): a block handed over under its own id is in place.
            runs = [run for run in runs if run.target != run.source]
        stream = self._streams.get()
        try:
            for run in runs:
                stream.copy(target + run.target * size, source + run.source * size, run.num_blocks * size)
        finally:
            try:
                stream.wait()  # what was queued before a failure writes too
            finally:
                self._streams.put(stream)

    def close(self) -> None:
        """Close the handles; on a thread that may wait, since CUDA may wait for the GPU's work."""
        cuda = _runtime()
        cuda.setDevice(self._ordinal)
        while not self._streams.empty():
            self._streams.get().close()
        while self._opened:
            cuda.ipcCloseMemHandle(self._opened.pop())

    def _open(self, runtime: _Runtime, facts: RegionFacts) -> int:
        export = facts.export
        if export is None:
            raise CudaError(f"the receiver exports no CUDA IPC handle of {facts.group!r}")
        known = next((memory for memory in self._memories if memory.export == export), None)
        known = known or _own_exports.get(export)
        if known is not None:
            _allow_peer_access(runtime, self._ordinal, known.ordinal)
            return known.pointer
        whose = f"the CUDA IPC handle of {facts.group!r} on {facts.device}, from process {export.pid}"
        if export.pid_namespace != pid_namespace():
            raise CudaError(
                f"{whose}, is of another PID namespace; containers must share it "
                "(docker: --pid, Kubernetes: shareProcessNamespace)"
            )
        try:
            pointer = runtime.ipcOpenMemHandle(export.handle, _LAZY_PEER_ACCESS)
        except RuntimeError as error:
            raise CudaError(f"{whose}, does not open: {error}") from error
        self._opened.append(pointer)
        return pointer


def _allow_peer_access(runtime: _Runtime, ordinal: int, peer: int) -> None:
    if ordinal == peer:
        return
    if not runtime.deviceCanAccessPeer(ordinal, peer):
        raise CudaError(f"GPU {ordinal} has no peer access to GPU {peer}")
    try:
        runtime.deviceEnablePeerAccess(peer)
    except RuntimeError as error:
        if "PeerAccessAlreadyEnabled" not in str(error):
            raise


def _on_gpu(ordinal: int, function: Callable[[_Runtime], T]) -> T:
    # On a thread of its own: the current GPU is the thread's, and setting the caller's back would
    # give that GPU a context (some 500 MB) in a process that never uses it.
    def run() -> T:
        runtime = _runtime()
        runtime.setDevice(ordinal)
        return function(runtime)

    with ThreadPoolExecutor(1, "kv-cuda") as executor:
        return executor.submit(run).result()
