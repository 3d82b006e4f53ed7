"""Where weights lie on the device. Every weight of a model goes through one Placement, in build order."""

from __future__ import annotations

import math
from typing import Protocol

import torch

from engine.backends.cuda.errors import ArenaFullError

_ALIGNMENT = 256


class Placement(Protocol):
    """Gives memory for the weights of one model."""

    def place(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Memory of the next weight, contiguous, on the device.

        It holds whatever was there: the backend fills it, or leaves it where the weight that it was
        given is a meta tensor, which means that somebody else has filled it.
        """
        ...


class OwnMemory:
    """A tensor of its own for each weight."""

    def place(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """New memory."""
        return torch.empty(shape, dtype=dtype, device="cuda")


class Arena:
    """One run of bytes, cut from its start: the same model gives the same offsets.

    Attributes:
        used_bytes: what is cut so far, padding included.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        """`memory`: uint8[num_bytes], aligned to 256 bytes; a meta tensor measures what a model needs."""
        self._memory = memory
        self.used_bytes = 0

    def place(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """The next free bytes.

        Raises:
            ArenaFullError: fewer are left.
        """
        size = math.prod(shape) * dtype.itemsize
        if self.used_bytes + size > self._memory.shape[0]:
            raise ArenaFullError(self.used_bytes + size, self._memory.shape[0])
        start = self.used_bytes
        self.used_bytes = -(-(start + size) // _ALIGNMENT) * _ALIGNMENT
        return self._memory[start : start + size].view(dtype).view(shape)
