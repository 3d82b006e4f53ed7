"""Launches whose arguments are packed into memory that is used again: a few microseconds of the host each.

A kernel takes the same kinds of arguments every time, so where they lie is worked out once. A launch packs
configuration and arguments with one call of `struct` and hands the driver two addresses:

    Frame   buffer   CUlaunchConfig | argument 0 | argument 1 | ...      each at a multiple of 16 bytes
            pointers of the arguments

The driver copies arguments before it returns, so a frame is free again at once. Each thread that launches
takes a frame of its own from the kernel's free ones.

On a CPU with a driver that does nothing: `python -m bench.kernels.host`. Switched on by the environment,
BATON_PACKED_LAUNCHES=1, until it has passed the kernel tests on a GPU.
"""

import ctypes
import os
import struct
from collections.abc import Sequence

import numpy as np
import torch

from engine.backends.cuda import overlap
from engine.backends.cuda.errors import LaunchError

Argument = torch.Tensor | np.generic | np.ndarray | None
ENABLED = os.environ.get("BATON_PACKED_LAUNCHES") == "1"

_ALIGNMENT = 16
_POINTER = "Q"
_FORMATS = {np.int32: "i", np.uint32: "I", np.int64: "q", np.uint64: "Q", np.float32: "f", np.float64: "d"}
# CUlaunchConfig: grid, block, shared bytes, stream, attributes, their number; padded as C does.
_CONFIG = "6II4xQQI4x"


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


class Frame:
    """Memory for one launch at a time of one kernel."""

    def __init__(self, function: int, args: Sequence[Argument]) -> None:
        """Lay out.

        Args:
            function: handle (CUfunction).
            args: of the first launch; later ones must be of the same kinds.
        """
        layout, offsets, end = "=" + _CONFIG, [], struct.calcsize("=" + _CONFIG)
        for arg in args:
            padding = -end % _ALIGNMENT
            offsets.append(end + padding)
            layout += f"{padding}x{format_of(arg)}"
            end = struct.calcsize(layout)
        self._layout = struct.Struct(layout)
        self._buffer = ctypes.create_string_buffer(end)
        address = ctypes.addressof(self._buffer)
        self._pointers = (ctypes.c_void_p * len(offsets))(*(address + offset for offset in offsets))
        self._config = ctypes.c_void_p(address)
        self._function = ctypes.c_void_p(function)

    def launch(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Argument],
        shared_bytes: int,
        stream: int,
        overlaps: bool,
    ) -> None:
        """Pack and launch; see overlap.launch.

        Raises:
            LaunchError: the driver refuses; carries its code.
            struct.error: an argument is not of the kind that it was the first time.
        """
        values = [
            arg.data_ptr() if isinstance(arg, torch.Tensor)
            else 0 if arg is None
            else arg.tobytes() if isinstance(arg, np.ndarray)
            else arg
            for arg in args
        ]  # fmt: skip
        self._layout.pack_into(
            self._buffer, 0, *grid, *block, shared_bytes, stream, overlap.ATTRIBUTE, int(overlaps), *values
        )
        status = overlap.launcher()(self._config, self._function, self._pointers, None)
        if status != 0:
            raise LaunchError(status)


class PackedLaunches:
    """Launches one kernel; any thread may."""

    def __init__(self, function: int) -> None:
        """`function`: handle (CUfunction)."""
        self._function = function
        self._free: list[Frame] = []

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Argument],
        shared_bytes: int,
        stream: int,
        overlaps: bool,
    ) -> None:
        """Launch on a stream (CUstream), which may be capturing; see overlap.launch."""
        try:
            frame = self._free.pop()
        except IndexError:
            frame = Frame(self._function, args)
        try:
            frame.launch(grid, block, args, shared_bytes, stream, overlaps)
        finally:
            self._free.append(frame)
