"""Launches that may start before the kernel ahead of them has ended.

CUDA calls it programmatic dependent launch: the kernel ahead says when (`let_next_start` in
cuda/async.cuh), the one behind waits where it first needs its results (`wait_for_previous`). A captured
launch stays one in the graph. CuPy has no such launch, so this calls the driver. Needs compute
capability 9.0.
Source: CUDA programming guide, "Programmatic Dependent Launch and Synchronization".
"""

import ctypes
import functools
from collections.abc import Callable, Sequence

import numpy as np

from engine.backends.cuda.errors import DriverMissingError, LaunchError

_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_int),
        ("unused", ctypes.c_char * 60),
    )


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


_MAY_OVERLAP = _Attribute(_SERIALIZATION, 0, 1, b"")
ATTRIBUTE = ctypes.addressof(_MAY_OVERLAP)
"""Where the launch attribute (CUlaunchAttribute) lies that lets a launch overlap."""


@functools.cache
def launcher() -> Callable[..., int]:
    """cuLaunchKernelEx.

    Raises:
        DriverMissingError: no libcuda, or one that is too old.
    """
    try:
        function = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx
    except (OSError, AttributeError) as error:
        raise DriverMissingError(str(error)) from error
    function.restype = ctypes.c_int
    return function


def launch(
    function: int,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    args: Sequence[int | np.generic | np.ndarray],
    shared_bytes: int,
    stream: int,
) -> None:
    """Launch behind the stream's last kernel, not waiting for its end.

    Args:
        function: handle (CUfunction).
        args: device addresses as Python ints; NumPy scalars and one-element arrays by value.
        stream: handle (CUstream); may be capturing.
    Raises:
        LaunchError: the driver refuses; carries its code.
    """
    held = [np.uint64(arg) if isinstance(arg, int) else arg for arg in args]
    arrays = [np.asarray(arg) for arg in held]
    addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    config = _Config(
        (ctypes.c_uint * 3)(*grid),
        (ctypes.c_uint * 3)(*block),
        shared_bytes,
        stream,
        ctypes.pointer(_MAY_OVERLAP),
        1,
    )
    status = launcher()(ctypes.byref(config), ctypes.c_void_p(function), addresses, None)
    if status != 0:
        raise LaunchError(status)
