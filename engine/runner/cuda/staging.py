"""One copy from the host to the device a step, whatever it consists of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 16


class Staging:
    """A buffer on the device at a fixed address; a captured graph may read its front."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        """`capacity`: bytes."""
        self._device = torch.zeros(capacity, dtype=torch.uint8, device=device)

    def front(self, *sizes: int) -> list[torch.Tensor]:
        """Where `send` puts parts of so many bytes, the first of a step."""
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
        return [self._device[start : start + size] for start, size in zip(starts, sizes, strict=False)]

    def send(self, parts: Sequence[npt.NDArray[np.generic]]) -> list[torch.Tensor]:
        """Copy arrays to the device, in the order of the stream, without waiting.

        Each part begins at a multiple of 16 bytes after the one before, so equal sizes give equal addresses.

        Returns:
            One tensor a part, as bytes; valid until the next call.
        """
        starts, total = [], 0
        for part in parts:
            starts.append(total)
            total += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
        # Torch keeps pinned memory until the copy from it is over.
        pinned = torch.empty(total, dtype=torch.uint8, pin_memory=True)
        host = pinned.numpy()
        for start, part in zip(starts, parts, strict=True):
            host[start : start + part.nbytes] = part.view(np.uint8)
        self._device[:total].copy_(pinned, non_blocking=True)
        return [self._device[start : start + part.nbytes] for start, part in zip(starts, parts, strict=True)]
