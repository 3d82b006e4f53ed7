"""Weights from the host to the device, through pinned memory and as fast as either end allows."""

from __future__ import annotations

import torch

_PIECE_BYTES = 32 << 20


class Upload:
    """Two pinned buffers in turn: one is filled while the other is copied."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        self._turn = 0

    def fill(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy a tensor of any device and dtype into one on the device; meta tensors copy nothing.

        Host memory may be reused at once; the device's is complete in the order of the stream.
        """
        if source.is_meta:
            return
        assert target.shape == source.shape, f"{list(source.shape)} into {list(target.shape)}"
        if source.device.type != "cpu":
            target.copy_(source)
            return
        flat_target, flat_source = target.view(-1), source.reshape(-1)
        piece = _PIECE_BYTES // source.element_size()
        for start in range(0, len(flat_source), piece):
            part = flat_source[start : start + piece]
            self._copy(flat_target[start : start + len(part)], part)

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if not self._buffers:
            self._buffers = [torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn ^= 1
        self._copied[self._turn].synchronize()
        pinned = self._buffers[self._turn].view(source.dtype)[: len(source)]
        pinned.copy_(source)
        # The device converts: the host's cores are few.
        target.copy_(pinned.to(target.device, non_blocking=True))
        self._copied[self._turn].record()
