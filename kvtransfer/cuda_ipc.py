"""GPU memory that peers can open, and the transport that writes into it.

    owner     allocate_device -> Region -> its handle goes to peers in `KvRegion`
    sender    CudaIpcWriter opens the handles once, when it connects; then, batch by batch:
              gate -> one asynchronous copy a run of blocks -> wait for the batch -> gate -> PLACED

The copies run on a stream of their own, on the copy engines, within one GPU or from GPU to GPU;
no byte passes the host. A copy thread waits for each batch, since the gate may be left only when
nothing is being written any more (ADR 2); with two threads the next batch is queued meanwhile.
The only module of kvtransfer that imports CuPy.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, cast

from kvtransfer.copy_batch import Copy, queue_copies
from kvtransfer.errors import CudaError
from kvtransfer.host import pid_namespace
from kvtransfer.region import CudaExport, DeviceMemory, Region, RegionFacts
from kvtransfer.runs import CopyRun, merge_runs

T = TypeVar("T")

# A released transfer waits for the batches under way: 0.7 ms over NVLink, some 10 ms over PCIe.
MAX_BATCH_BYTES = 256 << 20
_GRANULE_BYTES = 2 << 20  # smaller allocations share a page, and a handle would export neighbours
_NON_BLOCKING_STREAM = 1  # does not wait for the default stream, nor that for it
_LAZY_PEER_ACCESS = 1
_DISABLE_TIMING = 2

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
    def eventCreateWithFlags(self, flags: int) -> int: ...  # noqa: N802
    def eventRecord(self, event: int, stream: int) -> None: ...  # noqa: N802
    def eventSynchronize(self, event: int) -> None: ...  # noqa: N802
    def eventDestroy(self, event: int) -> None: ...  # noqa: N802


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
    """GPU memory, this process's or another's that it opened; one a region.

    Attributes:
        memory: what a `Region` takes; `memory.export` is for peers.
        device: what a `Region` gives as `device`.
    """

    def __init__(self, memory: DeviceMemory, device: str, *, is_own: bool) -> None:
        self.memory = memory
        self.device = device
        self._is_own = is_own
        self._closed = False

    def close(self) -> None:
        """Free own memory, or close another's; idempotent.

        Own memory only when no peer has it open: their mappings would dangle.
        """
        if self._closed:
            return
        self._closed = True
        pointer, export = self.memory.pointer, self.memory.export
        if self._is_own:
            if export is not None:
                _own_exports.pop(export, None)
            _on_gpu(self.memory.ordinal, lambda runtime: runtime.free(pointer))
        else:
            _on_gpu(self.memory.ordinal, lambda runtime: runtime.ipcCloseMemHandle(pointer))


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
    return DeviceAllocation(memory, device, is_own=True)


def open_device(export: CudaExport, num_bytes: int, device: str) -> DeviceAllocation:
    """Open GPU memory that another process allocated, on the same GPU.

    Args:
        device: "cuda:<uuid>", as its owner says.
    Raises:
        CudaError: this process does not see that GPU, or the handle does not open; says why.
    """
    ordinal = next((gpu for gpu in range(num_gpus()) if device_name(gpu) == device), None)
    if ordinal is None:
        raise CudaError(f"{device} is not among the {num_gpus()} GPUs of this process (CUDA_VISIBLE_DEVICES)")
    pointer = _on_gpu(ordinal, lambda runtime: _open_handle(runtime, export, f"memory on {device}"))
    return DeviceAllocation(DeviceMemory(pointer, num_bytes, ordinal, export), device, is_own=False)


class CopyStream:
    """A stream that copies; for any threads, whose current GPU it sets."""

    def __init__(self, ordinal: int) -> None:
        self._cuda = _runtime()
        self._ordinal = ordinal
        self._lock = threading.Lock()
        self._cuda.setDevice(ordinal)
        self._stream = self._cuda.streamCreateWithFlags(_NON_BLOCKING_STREAM)

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy after what other threads queued before, and wait for it; lets go of the GIL.

        Args:
            copies: at least one.
        Raises:
            CudaError, RuntimeError: CUDA's error; none of the copies is being made any more.
        """
        cuda = self._cuda
        cuda.setDevice(self._ordinal)
        done = cuda.eventCreateWithFlags(_DISABLE_TIMING)
        try:
            with self._lock:
                queue_copies(copies, self._stream)
                cuda.eventRecord(done, self._stream)
            cuda.eventSynchronize(done)
        except (CudaError, RuntimeError):
            cuda.streamSynchronize(self._stream)  # what was queued before a failure writes too
            raise
        finally:
            cuda.eventDestroy(done)

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
        self._stream: CopyStream | None = None

        def open_all(runtime: _Runtime) -> list[int]:
            try:
                targets = [self._open(runtime, facts) for facts in receiver_regions]
                self._stream = CopyStream(self._ordinal)
            except (CudaError, RuntimeError):
                self.close()
                raise
            return targets

        try:
            self._targets = _on_gpu(self._ordinal, open_all)
        except RuntimeError as error:
            raise CudaError(f"GPU {self._ordinal} cannot be used: {error}") from error

    def piece_blocks(self, num_blocks: int) -> int:
        """One thread queues a whole batch; the next thread's runs right behind."""
        return self.batch_blocks

    def write(
        self,
        group: int,
        target_block_ids: Sequence[int],
        source_block_ids: Sequence[int],
        part: range | None = None,
    ) -> int:
        """Copy blocks run by run, parts of them block by block; in place when this returns."""
        target, source = self._targets[group], self._memories[group].pointer
        size = self._block_bytes[group]
        if part is None:
            offset, num_bytes = 0, size
            runs = merge_runs(target_block_ids, source_block_ids)
        else:
            offset, num_bytes = part.start, len(part)
            runs = [CopyRun(*pair, 1) for pair in zip(target_block_ids, source_block_ids, strict=True)]
        if target == source:
            # Both workers use one pool (the vault): a block handed over under its own id is in place.
            runs = [run for run in runs if run.target != run.source]
        target, source = target + offset, source + offset
        copies = [Copy(target + to * size, source + at * size, count * num_bytes) for to, at, count in runs]
        if copies:
            assert self._stream is not None, "written after close"
            self._stream.copy(copies)
        return sum(copy.num_bytes for copy in copies)

    def close(self) -> None:
        """Close the handles; on a thread that may wait, since CUDA may wait for the GPU's work."""
        cuda = _runtime()
        cuda.setDevice(self._ordinal)
        if self._stream is not None:
            self._stream.close()
            self._stream = None
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
        pointer = _open_handle(runtime, export, f"{facts.group!r} on {facts.device}")
        self._opened.append(pointer)
        return pointer


def _open_handle(runtime: _Runtime, export: CudaExport, what: str) -> int:
    whose = f"the CUDA IPC handle of {what}, from process {export.pid}"
    if export.pid_namespace != pid_namespace():
        raise CudaError(
            f"{whose}, is of another PID namespace; containers must share it "
            "(docker: --pid, Kubernetes: shareProcessNamespace)"
        )
    try:
        return runtime.ipcOpenMemHandle(export.handle, _LAZY_PEER_ACCESS)
    except RuntimeError as error:
        raise CudaError(f"{whose}, does not open: {error}") from error


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
