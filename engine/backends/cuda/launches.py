"""Launches whose arguments are packed into memory that is used again: a few microseconds of the host each.

A kernel takes the same kinds of arguments every time, so where they lie is worked out once. A launch packs
configuration and arguments with one call of `struct` and hands the driver two addresses:

    Frame   buffer   CUlaunchConfig | argument 0 | argument 1 | ...      each at a multiple of 16 bytes
            pointers of the arguments

The driver copies arguments before it returns, so a frame is free again at once. Each thread that launches
takes a frame of its own from the kernel's free ones.

A launch may start before the kernel ahead of it has ended, which CUDA calls programmatic dependent launch:
the kernel ahead says when (`let_next_start` in cuda/async.cuh), the one behind waits where it first needs
its results (`wait_for_previous`). A captured launch stays one in the graph. Needs compute capability 9.0.
CuPy has no such launch, so this calls the driver.
Source: CUDA programming guide, "Programmatic Dependent Launch and Synchronization".
"""

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence

import numpy as np
import torch

from engine.backends.cuda.errors import DriverMissingError, LaunchError

Argument = torch.Tensor | np.generic | np.ndarray | None
Dim3 = tuple[int, int, int]

_ALIGNMENT = 16
_POINTER = "Q"
_FORMATS = {np.int32: "i", np.uint32: "I", np.int64: "q", np.uint64: "Q", np.float32: "f", np.float64: "d"}
# CUlaunchConfig: grid, block, shared bytes, stream, attributes, their number; padded as C does.
_CONFIG = "6II4xQQI4x"
# CUlaunchAttribute: id, padding, value, to 72 bytes.
_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_MAY_OVERLAP = ctypes.create_string_buffer(struct.pack("=iii60x", _SERIALIZATION, 0, 1), 72)
_ATTRIBUTE = ctypes.addressof(_MAY_OVERLAP)


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


def format_of(arg: Argument) -> str:
    """How `struct` packs an argument.

    Raises:
        TypeError: a Python number, whose size would not be the kernel's, or anything else unknown.
    """
    if arg is None or isinstance(arg, torch.Tensor):
        return _POINTER
    if isinstance(arg, np.ndarray):
        return f"{arg.nbytes}s"
    known = _FORMATS.get(type(arg))
    if known is None:
        raise TypeError(f"kernel argument of type {type(arg).__name__}: wrap numbers in np.int32, np.float32")
    return known


class _Frame:
    """Memory for one launch at a time of one kernel."""

    __slots__ = ("address", "buffer", "pack_into", "pointers")

    def __init__(self, args: Sequence[Argument]) -> None:
        """Lay out. `args`: of the first launch; later ones must be of the same kinds."""
        layout, offsets, end = "=" + _CONFIG, [], struct.calcsize("=" + _CONFIG)
        for arg in args:
            padding = -end % _ALIGNMENT
            offsets.append(end + padding)
            layout += f"{padding}x{format_of(arg)}"
            end = struct.calcsize(layout)
        self.pack_into = struct.Struct(layout).pack_into
        self.buffer = ctypes.create_string_buffer(end)
        address = ctypes.addressof(self.buffer)
        self.pointers = (ctypes.c_void_p * len(offsets))(*(address + offset for offset in offsets))
        self.address = ctypes.c_void_p(address)


class Launches:
    """Launches one kernel; any thread may."""

    def __init__(self, function: int) -> None:
        """`function`: handle (CUfunction)."""
        self._function = ctypes.c_void_p(function)
        self._free: list[_Frame] = []

    def __call__(
        self,
        grid: Dim3,
        block: Dim3,
        args: Sequence[Argument],
        shared_bytes: int,
        stream: int,
        overlaps: bool,
    ) -> None:
        """Launch.

        Args:
            args: tensors go in as addresses, None as a null pointer, NumPy scalars and one-element structured
                arrays by value. Python numbers are refused: their size would not be the kernel's.
            stream: handle (CUstream); may be capturing.
            overlaps: the kernel waits by itself for the one ahead of it.
        Raises:
            LaunchError: the driver refuses; carries its code.
            struct.error: an argument is not of the kind that it was the first time.
        """
        try:
            frame = self._free.pop()
        except IndexError:
            frame = _Frame(args)
        values = [
            arg.data_ptr() if isinstance(arg, torch.Tensor)
            else 0 if arg is None
            else arg.tobytes() if isinstance(arg, np.ndarray)
            else arg
            for arg in args
        ]  # fmt: skip
        try:
            frame.pack_into(
                frame.buffer, 0, *grid, *block, shared_bytes, stream, _ATTRIBUTE, int(overlaps), *values
            )
            status = launcher()(frame.address, self._function, frame.pointers, None)
        finally:
            self._free.append(frame)
        if status != 0:
            raise LaunchError(status)
