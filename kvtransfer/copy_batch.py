"""Many copies by one call of the CUDA driver.

A call for each copy would take Python's lock again after each, from a thread that has better things to do
with it: the engine's. Needs CUDA 13, as CuPy's wheel does.
Source: CUDA driver API, cuMemcpyBatchAsync.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvtransfer.errors import CudaError

_IN_STREAM_ORDER = 1  # CU_MEMCPY_SRC_ACCESS_ORDER_STREAM


class Copy(NamedTuple):
    """One copy between two addresses, of any GPU or of pinned host memory."""

    target: int
    source: int
    num_bytes: int


class _Location(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):
    """CUmemcpyAttributes; the locations are hints for managed memory only."""

    _fields_ = (
        ("source_order", ctypes.c_int),
        ("source", _Location),
        ("target", _Location),
        ("flags", ctypes.c_uint),
    )


_ATTRIBUTES = _Attributes(_IN_STREAM_ORDER)
_FIRST = ctypes.c_size_t(0)  # of the copies that have these attributes


@functools.cache
def _driver() -> Callable[..., int]:
    try:
        function = ctypes.CDLL("libcuda.so.1").cuMemcpyBatchAsync_v2
    except (OSError, AttributeError) as error:
        raise CudaError(f"the NVIDIA driver is missing, or older than CUDA 13: {error}") from error
    function.restype = ctypes.c_int
    return function


def queue_copies(copies: Sequence[Copy], stream: int) -> None:
    """Queue copies on a stream, behind what it has; among each other in any order. Lets go of the GIL.

    Args:
        copies: at least one; none writes what another one reads or writes.
        stream: handle (CUstream), not the default one.
    Raises:
        CudaError: the driver refuses, or is too old; some of the copies may have been queued.
    """
    count = len(copies)
    targets, sources, sizes = zip(*copies, strict=True)
    addresses, numbers = ctypes.c_uint64 * count, ctypes.c_size_t * count
    status = _driver()(
        addresses(*targets),
        addresses(*sources),
        numbers(*sizes),
        ctypes.c_size_t(count),
        ctypes.byref(_ATTRIBUTES),
        ctypes.byref(_FIRST),
        ctypes.c_size_t(1),
        ctypes.c_void_p(stream),
    )
    if status:
        raise CudaError(f"cuMemcpyBatchAsync of {count} copies failed with {status}")
