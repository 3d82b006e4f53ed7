"""CUtensorMap descriptors for the tensor copy engine (compute capability 9.0 and later).

A descriptor is a one-element NumPy array of 128 bytes, which a launch passes by value.
"""

import ctypes
import enum
import functools
from collections.abc import Callable, Sequence

import numpy as np

from engine.backends.cuda.errors import DriverMissingError, UnsupportedShapeError

_BYTES = 128
_ALIGNMENT = 64
_UINT16 = 1  # CU_TENSOR_MAP_DATA_TYPE_UINT16: bits are moved, so bf16 and fp16 are the same to it
_PROMOTE_L2_128B = 2  # 256 would fetch the other half of a row that another box fetches too: 5 % slower


class Swizzle(enum.IntEnum):
    """How 16-byte pieces are permuted in shared memory (CUtensorMapSwizzle)."""

    NONE = 0
    BYTES_32 = 1
    BYTES_64 = 2
    BYTES_128 = 3


@functools.cache
def _encode() -> Callable[..., int]:
    try:
        function = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    except (OSError, AttributeError) as error:
        raise DriverMissingError(str(error)) from error
    function.restype = ctypes.c_int
    return function


def empty() -> np.ndarray:
    """A descriptor for kernels built without the copy engine, which never read it."""
    return np.zeros(1, dtype=f"V{_BYTES}")


def tiled_16bit(
    address: int, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int], swizzle: Swizzle
) -> np.ndarray:
    """Describe a tensor of 16-bit elements.

    Args:
        address: of element 0 on the device, a multiple of 16.
        sizes: elements of each dimension, innermost first, 2 to 5 of them.
        strides: bytes from an index to the next, for all but the innermost dimension.
        box: elements that one copy brings, innermost first; what lies outside `sizes` is zero.
    Raises:
        UnsupportedShapeError: the driver refuses the combination.
        DriverMissingError: no libcuda, or one without tensor maps.
    """
    rank = len(sizes)
    holder = np.zeros(_BYTES + _ALIGNMENT, dtype=np.uint8)
    offset = -holder.ctypes.data % _ALIGNMENT
    status = _encode()(
        ctypes.c_void_p(holder.ctypes.data + offset),
        ctypes.c_int(_UINT16),
        ctypes.c_uint32(rank),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * rank)(*sizes),
        (ctypes.c_uint64 * (rank - 1))(*strides),
        (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*([1] * rank)),
        ctypes.c_int(0),
        ctypes.c_int(int(swizzle)),
        ctypes.c_int(_PROMOTE_L2_128B),
        ctypes.c_int(0),
    )
    if status != 0:
        raise UnsupportedShapeError(
            f"tensor map sizes {tuple(sizes)}, box {tuple(box)}: driver error {status}"
        )
    return holder[offset : offset + _BYTES].copy().view(f"V{_BYTES}")
