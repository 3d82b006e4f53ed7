"""The shapes of another source without its numbers."""

from __future__ import annotations

import torch

from engine.weights.source import HOST, Shape, TensorSource


class ShapeSource:
    """Gives meta tensors: for whoever builds a model over weights that are in place already."""

    def __init__(self, source: TensorSource) -> None:
        """`source` is asked for shapes and its identity, never for a tensor."""
        self.origin = source.origin
        self.weights_id = source.weights_id
        self._source = source

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor, or None."""
        return self._source.shape(name)

    def tensor(self, name: str, device: torch.device = HOST) -> torch.Tensor:
        """A tensor without memory."""
        shape = self._source.shape(name)
        assert shape is not None, name
        return torch.empty(shape, device="meta")
